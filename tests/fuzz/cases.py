"""A case, the process that it runs in, and the rules that it must keep."""

import math
import os
import resource
import select
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


TIME_SCALE = 1.0  # times the seconds of a case: more where other processes take the processor


DOCUMENTED = (OSError, ValueError)
NOISE = 2**24  # bytes by which the memory of equal work differs from process to process
SPARE = 2**33  # bytes of addresses that a case may take beyond what is there, so that none takes the machine
MAX_MESSAGE = 1000


class WrongResult(Exception):
    """What came back is not what was stored, and nothing said so: the worst that a reader can do."""


@dataclass
class Case:
    """
    A piece of hostile input and the work on it.

    Args:
        kind (`str`): Which kind of input; the first case of a kind is a good one, by which the others are measured.
        run (`Callable`): The work; it returns if its result is right, and raises [`WrongResult`] if it is wrong.
        path (`Path`, *optional*): The damaged file, or the folder with it, which is kept if the case fails.
        size (`int`, *optional*): Bytes of the file; without, memory is not measured by it.
        errors (`tuple`): What the work may raise, in one line.
        seconds (`float`, defaults to 1): Processor time that it may take; after 20 times as long it is ended.
    """

    kind: str
    run: Callable[[], None]
    path: Path | None = None
    size: int | None = None
    errors: tuple[type[BaseException], ...] = DOCUMENTED
    seconds: float = 1.0


@dataclass
class Result:
    """
    What became of a case.

    Args:
        kind (`str`): As that of the case.
        outcome (`str`): `right`, the name of the error, or how the process ended.
        seconds (`float`), megabytes (`float`): Processor time, and memory beyond what was there before.
        good (`bool`): Whether it is the good one of its kind.
        problem (`str`): The rule that was broken and how; empty if none was.
        kept (`str`): Where the damaged file is, if a rule was broken.
    """

    kind: str
    outcome: str
    seconds: float
    megabytes: float
    good: bool = False
    problem: str = ""
    kept: str = ""


def require_right(holds: bool, what: str):
    """Raises a [`WrongResult`] unless it holds."""
    if not holds:
        raise WrongResult(what)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def attempt(run: Callable[[], None], errors: tuple[type[BaseException], ...]) -> tuple[str, str]:
    """The outcome of the work, and what is wrong with it."""
    try:
        run()
    except errors as error:
        return type(error).__name__, message_problem(str(error))
    except BaseException as error:  # whatever it is, it is what the case is about
        return type(error).__name__, f"{type(error).__name__}: {error}"
    return "right", ""


def message_problem(message: str) -> str:
    if "\n" in message.strip():
        return f"its message has several lines: {message}"
    return f"its message has {len(message)} characters" if len(message) > MAX_MESSAGE else ""


def in_child(work: Callable[[], str]) -> tuple[int, int]:
    """Begins work in a process of its own, in silence; returns its id and where to read what the work returns."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    try:
        os.close(reading)
        silent = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(silent, stream)
        limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + SPARE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.write(writing, work().encode("utf-8", "replace")[:4096])
    finally:
        os._exit(0)


def work_on(case: Case) -> str:
    before = peak_bytes()
    outcome, problem = attempt(case.run, case.errors)
    return f"{outcome}\n{peak_bytes() - before}\n{problem}"


def ran(case: Case) -> Result:
    """Runs a case in a process of its own; one that does not end is ended."""
    process, reading = in_child(lambda: work_on(case))
    answered = bool(select.select([reading], [], [], 20 * case.seconds)[0])
    if not answered:
        os.kill(process, signal.SIGKILL)
    with os.fdopen(reading, "rb") as file:
        answer = file.read().decode("utf-8", "replace")
    _, status, usage = os.wait4(process, 0)
    seconds = usage.ru_utime + usage.ru_stime
    if not answer:
        ending = f"signal {os.WTERMSIG(status)}" if answered else "no answer"
        return Result(case.kind, ending, seconds, 0.0, problem=f"{ending} after {seconds:.1f} s")
    outcome, grown, problem = answer.split("\n", 2)
    return Result(case.kind, outcome, seconds, int(grown) / 2**20, problem=problem)


def broken_rule(case: Case, result: Result, good: Result) -> str:
    """What is wrong with a result, beside that of a good file of its kind."""
    most = good.megabytes + (2 * case.size + NOISE) / 2**20 if case.size is not None else math.inf
    if result.problem:
        return result.problem
    if result.good and result.outcome != "right":
        return f"a good file must come out right, got {result.outcome}"
    if result.seconds > TIME_SCALE * case.seconds:
        return f"must take {case.seconds:g} s at most, took {result.seconds:.2f}"
    return f"must take {most:.0f} MB at most, took {result.megabytes:.0f}" if result.megabytes > most else ""


def keep(path: Path | None, kept: Path) -> str:
    """A copy of a damaged file or folder, and its name."""
    if path is None or not path.exists():
        return ""
    kept.parent.mkdir(parents=True, exist_ok=True)
    return str(shutil.copytree(path, kept) if path.is_dir() else shutil.copy(path, kept))


def judged(cases: Iterable[Case], kept: Path) -> Iterator[Result]:
    """The results of cases, in turn; what is damaged of those that break a rule is kept under a name and a number."""
    good: dict[str, Result] = {}
    for number, case in enumerate(cases):
        result = ran(case)
        result.good = case.kind not in good
        result.problem = broken_rule(case, result, good.setdefault(case.kind, result))
        if result.problem:
            result.kept = keep(case.path, kept.with_name(f"{kept.name}-{number}"))
        yield result


def seconds_of(run: Callable[[], None]) -> float:
    """How long work takes, in silence; a `ValueError` if it fails."""
    start = time.perf_counter()
    process, reading = in_child(lambda: attempt(run, ())[0])
    with os.fdopen(reading) as file:
        outcome = file.read()
    os.waitpid(process, 0)
    if outcome != "right":
        raise ValueError(f"The good case must come out right, got {outcome or 'nothing'}.")
    return time.perf_counter() - start


def share(count: int, place: int, kinds: int) -> int:
    """How many of so many cases fall to the kind at a place, if all kinds take turns."""
    return len(range(place, count, kinds))
