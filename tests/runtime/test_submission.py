"""What is checked before an experiment is submitted, what travels, and how a job is followed and stopped."""

from __future__ import annotations

import random
import socket
import time
from types import SimpleNamespace

import pytest
from job_client import Jobs
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus

from cornerstone.errors import CornerstoneError
from cornerstone.runtime import following, submission
from cornerstone.runtime.following import follow
from cornerstone.runtime.probe import Report
from cornerstone.runtime.submission import Submission, reattach, submit, travelling

ADDRESS = "http://head:8265"
EXPERIMENT = "experiments/x.py"


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """A project in the current folder, and a cluster that takes its jobs."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / EXPERIMENT).write_text("print('hello')")
    (tmp_path / "ray_jobs").mkdir()
    (tmp_path / "ray_jobs" / "runtime_env.yaml").write_text("working_dir: .\nenv_vars: {A: a}")
    monkeypatch.chdir(tmp_path)
    for name in ("CORNERSTONE_HOME", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    faked = Jobs()
    monkeypatch.setattr(submission, "connected", lambda address: faked)
    for module, pause in ((submission, "POLL_EVERY"), (following, "RECONNECT_EVERY"), (following, "DECIDE")):
        monkeypatch.setattr(module, pause, 0.01)
    return faked


def sent(*options: str, **changes) -> list[str]:
    """Submit the experiment; what was said."""
    said: list[str] = []
    submit(Submission([EXPERIMENT, *options], ADDRESS, **changes), said.append)
    return said


def refused(*options: str, **changes) -> str:
    """The message with which it is refused."""
    with pytest.raises(CornerstoneError) as error:
        sent(*options, **changes)
    return str(error.value)


def test_an_experiment_is_submitted_after_a_probe_with_its_options_and_followed(jobs, capsys):
    said = sent("--workers", "2", name="mine")
    probe, job = jobs.jobs.values()
    assert "python -m cornerstone.runtime.probe --workers 2" in probe.entrypoint
    assert job.entrypoint == "python experiments/x.py --workers 2"
    assert job.submission_id == "mine"
    assert probe.env["working_dir"] == job.env["working_dir"] == "."
    assert capsys.readouterr().out == "step 1\nstep 2\n"
    assert "of code travel to the cluster" in said[0]
    assert any("job mine; stop it with Ctrl-C twice" in line for line in said)
    assert jobs.deleted == [probe.submission_id]


def test_notes_of_the_probe_are_said(jobs):
    jobs.report = Report(notes=["the cluster is too small yet"])
    assert "the cluster is too small yet" in sent()


@pytest.mark.parametrize("theirs", ["2.9.3", "3.0.0"])
def test_another_ray_is_refused_before_anything_is_uploaded(jobs, theirs):
    jobs._server_ray_version = theirs
    message = refused()
    assert f"The cluster runs Ray {theirs}, this environment has" in message
    assert f"install ray=={theirs} here" in message
    assert jobs.jobs == {}


def test_a_patch_release_of_ray_is_the_same(jobs):
    jobs._server_ray_version = jobs.ray = ".".join([*jobs.ray.split(".")[:2], "99"])
    sent()
    assert len(jobs.experiments) == 1


@pytest.mark.parametrize(
    ("python", "ray", "message"),
    [
        ("3.9", None, "The cluster's `python` is 3.9, this one is"),
        (None, "2.1.0", "The cluster's `python` has Ray 2.1.0"),
    ],
)
def test_another_python_is_refused(jobs, python, ray, message):
    jobs.python, jobs.ray, jobs.report = python or jobs.python, ray or jobs.ray, None
    assert message in refused()
    assert jobs.experiments == []


def test_a_cluster_without_the_libraries_is_refused_with_the_last_lines(jobs):
    jobs.report = None
    message = refused()
    assert "The cluster cannot run this code; nothing was submitted." in message
    assert "No module named 'pyarrow'" in message
    assert jobs.experiments == []


def test_all_problems_of_the_cluster_are_named_at_once(jobs):
    jobs.report = Report(["CORNERSTONE_HOME is /x, where w1 cannot write", "needs 7 CPUs"])
    message = refused()
    assert message.splitlines() == ["The experiment was not submitted:", *jobs.report.problems]
    assert jobs.experiments == []


def test_a_probe_that_never_runs_is_stopped(jobs, monkeypatch):
    monkeypatch.setattr(submission, "PROBE_SECONDS", 0.0)
    monkeypatch.setattr(Jobs, "get_job_status", lambda self, job: JobStatus.PENDING)
    assert "took more than 0 s to run a small job" in refused()
    assert [job.status for job in jobs.jobs.values()] == [JobStatus.STOPPED]


def test_code_that_is_too_large_is_refused_with_the_largest_files(jobs, tmp_path):
    (tmp_path / "experiments" / "weights.bin").write_bytes(bytes(4 << 20))
    message = refused(limit=1.0)
    assert "above the limit of 1 MiB; the largest: experiments/weights.bin (4.0 MiB)" in message
    assert jobs.jobs == {}


def test_rays_own_limit_holds_whatever_is_allowed(jobs, tmp_path, monkeypatch):
    (tmp_path / "experiments" / "weights.bin").write_bytes(random.Random(0).randbytes(3 << 20))
    assert refused(limit=2.0).count("above the limit of 2 MiB") == 1
    monkeypatch.setattr("ray._private.runtime_env.packaging.GCS_STORAGE_MAX_SIZE", 1 << 20)
    message = refused(limit=1000.0)
    assert "above Ray's own limit of 1 MiB; the largest: experiments/weights.bin (3.0 MiB)" in message
    assert "raise --limit" not in message
    assert jobs.jobs == {}


def test_a_name_that_exists_is_refused_with_the_command_that_follows_it(jobs):
    sent(name="mine")
    message = refused(name="mine")
    assert "has a job 'mine' already (SUCCEEDED)" in message
    assert "cornerstone submit --cluster http://head:8265 --follow mine" in message
    assert len(jobs.experiments) == 1


def test_a_cluster_that_has_just_started_is_given_time(jobs, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    jobs.busy = 3
    sent()
    monkeypatch.setattr(submission, "AGENT_SECONDS", -1.0)
    jobs.busy = 1
    assert "refuses the job: No available agent" in refused()


def test_a_dead_address_is_refused_within_seconds(monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(
        CornerstoneError, match=rf"No cluster answers at http://127.0.0.1:{port}: nothing listens there"
    ):
        submission.connected(f"http://127.0.0.1:{port}")


def test_a_cluster_that_wants_a_token_says_so(monkeypatch):
    def client(address):
        raise AuthenticationError("Authentication required: Unauthorized: Missing authentication token\nmore")

    monkeypatch.setattr(submission, "listens", lambda host, port: True)
    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", client)
    with pytest.raises(
        CornerstoneError, match=r"head:8265 refuses this client: .*Missing authentication token. Give"
    ) as no:
        submission.connected("http://head:8265")
    assert "~/.ray/auth_token" in str(no.value)
    assert "Is the cluster up" not in str(no.value)


def test_addresses_travel_and_places_of_this_machine_stay():
    environ = {"CORNERSTONE_HOME": "s3://bucket/home", "MLFLOW_TRACKING_URI": "http://tracking:5000", "AWS_SECRET": "x"}
    found, notes = travelling((), environ)
    assert found == {"CORNERSTONE_HOME": "s3://bucket/home", "MLFLOW_TRACKING_URI": "http://tracking:5000"}
    assert notes[0].startswith("environment variables that travel: CORNERSTONE_HOME, MLFLOW_TRACKING_URI; all others")
    here = {"CORNERSTONE_HOME": "/home/me", "MLFLOW_TRACKING_URI": "http://me:secret@tracking:5000"}
    found, notes = travelling((), here)
    assert found == {}
    assert [note.partition(" ")[0] for note in notes[1:]] == ["CORNERSTONE_HOME", "MLFLOW_TRACKING_URI"]
    assert "secret" not in "".join(notes)
    found, notes = travelling(("CORNERSTONE_HOME", "B=b=c"), here)
    assert found == {"CORNERSTONE_HOME": "/home/me", "B": "b=c"}
    assert len(notes) == 2
    option = {"MLFLOW_TRACKING_URI": "postgresql://tracking/mlflow?user=me&password=secret"}
    assert travelling((), option)[0] == {}
    with pytest.raises(CornerstoneError, match="--env C: this variable is not set here"):
        travelling(("C",), here)


def test_variables_of_the_runtime_environment_are_kept(jobs, monkeypatch):
    monkeypatch.setenv("CORNERSTONE_HOME", "s3://bucket/home")
    sent(variables=("B=b",))
    for job in jobs.jobs.values():
        assert job.env["env_vars"] == {"A": "a", "CORNERSTONE_HOME": "s3://bucket/home", "B": "b"}


def test_a_lost_connection_is_taken_up_where_it_broke(jobs, capsys):
    jobs.chunks = ["one\n", "two", ConnectionError("reset"), "\nthree\n", RuntimeError("closed"), "four\n"]
    said = sent()
    assert capsys.readouterr().out == "one\ntwo\nthree\nfour\n"
    assert sum("the connection to the cluster is lost" in line for line in said) == 2


def test_a_connection_that_closes_before_the_end_is_opened_again(jobs, capsys):
    opened = []

    def closes(job):
        opened.append(job)
        if len(opened) == 1:
            return part()
        return Jobs.tail_job_logs(jobs, job)

    async def part():
        yield "step 1\n"

    jobs.tail_job_logs = closes
    sent()
    assert capsys.readouterr().out == "step 1\nstep 2\n"
    assert len(opened) == 2


def test_a_cluster_that_stays_away_is_given_up_with_the_way_back(jobs, monkeypatch):
    monkeypatch.setattr(following, "PATIENCE", -1.0)
    jobs.chunks = ["one\n", ConnectionError("reset")]
    message = refused(name="mine")
    assert "may go on; follow it again with:\n  cornerstone submit --cluster http://head:8265 --follow mine" in message


def test_a_job_that_fails_is_an_error(jobs):
    jobs.ends = JobStatus.FAILED
    assert "job raysubmit_1: FAILED" in refused()


def interrupt() -> None:
    raise KeyboardInterrupt


def test_the_first_interrupt_leaves_the_job_running_and_says_how_to_come_back(jobs, capsys):
    jobs.chunks = ["one\n", interrupt, "two\n"]
    said: list[str] = []
    with pytest.raises(SystemExit) as exited:
        submit(Submission([EXPERIMENT], ADDRESS, name="mine"), said.append)
    assert exited.value.code == 130
    assert (
        "mine goes on; follow it again with:\n  cornerstone submit --cluster http://head:8265 --follow mine" in said[-1]
    )
    assert "Ctrl-C again within" in said[-1]
    assert jobs.jobs["mine"].status == JobStatus.RUNNING
    reattach("mine", ADDRESS, said.append)
    assert capsys.readouterr().out == "one\n" + "one\ntwo\n"


@pytest.mark.parametrize("has_sweep", [True, False])
def test_the_second_interrupt_stops_the_job_and_prints_the_command_that_continues(jobs, monkeypatch, has_sweep):
    jobs.chunks = ["sweep s7\n", interrupt]
    # `time` itself has other users, such as subprocess.
    clock = SimpleNamespace(sleep=lambda seconds: interrupt(), monotonic=time.monotonic)
    monkeypatch.setattr(following, "time", clock)
    options, said = ["--preset", "smoke", "--continue", "s1", "--only", "0, long loss"], []

    def stops(job):
        jobs.jobs[job].status = JobStatus.STOPPED
        jobs.jobs[job].logs = "Stopped.\n  python x --continue s7\n" if has_sweep else ""

    jobs.stop_job = stops
    with pytest.raises(SystemExit) as exited:
        submit(Submission([EXPERIMENT, *(options if has_sweep else [])], ADDRESS, name="mine"), said.append)
    assert exited.value.code == 130
    command = "cornerstone submit experiments/x.py --cluster http://head:8265"
    more = " -- --preset smoke --only '0, long loss' --continue s7" if has_sweep else ""
    assert said[-1].startswith("STOPPED. ")
    assert said[-1].endswith(f"with:\n  {command}{more}")


def test_only_a_job_that_exists_can_be_followed(jobs):
    sent(name="mine")
    with pytest.raises(CornerstoneError, match=r"no job 'other' at http://head:8265; its jobs: .*mine"):
        reattach("other", ADDRESS, print)


def test_rays_noise_is_left_out(jobs, capsys):
    jobs.chunks = ["Set ray log level from environment variable X\nstep 1\n"]
    jobs.jobs["j"] = SimpleNamespace(status=JobStatus.RUNNING, logs="", message="")
    follow(jobs, "j")
    assert capsys.readouterr().out == "step 1\n"
