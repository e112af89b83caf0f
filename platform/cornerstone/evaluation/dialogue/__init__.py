"""Benchmarks of visual dialogue, each from its own released files: questions in, answers scored by the benchmark's own rules."""

from cornerstone.evaluation.dialogue.benchmark import Answers, Benchmark, Question, Scored
from cornerstone.evaluation.dialogue.registry import BENCHMARKS, benchmark

__all__ = ["BENCHMARKS", "Answers", "Benchmark", "Question", "Scored", "benchmark"]
