"""Benchmarks of visual dialogue: questions from their own released files, answers scored by their own rules."""

from cornerstone.evaluation.dialogue.benchmark import Answers, Benchmark, Question, Scored
from cornerstone.evaluation.dialogue.registry import BENCHMARKS, benchmark

__all__ = ["BENCHMARKS", "Answers", "Benchmark", "Question", "Scored", "benchmark"]
