"""Reproduce tables of the papers: run their missing trainings and evaluations, and print the paper's and our numbers.

    python -m experiments.run v3_table5
    python -m experiments.run v3_table5 v3_table6 --regime camvid --data_dir DIR --init MODEL_FOLDER --seeds 3
    python -m experiments.run v3plus_table3 --regime paper --plan

Rows that need the same training share it. Finished jobs are not run again, and interrupted ones go on. Each table has
one file of results, OUT/REGIME/TABLE.json.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from deeplab_jax.cli import enable_compilation_cache
from deeplab_jax.commands import INTERRUPTED, PREEMPTED, fail
from deeplab_jax.config import split_config_arguments
from deeplab_jax.errors import UserError, did_you_mean, end_process
from deeplab_jax.files import locked
from deeplab_jax.flags import Parser, positive
from deeplab_jax.provenance import git_commit, short
from deeplab_jax.train.signals import Interrupted, stop_on_signals
from experiments.outcomes.cells import hours, provenance, verdict_cells
from experiments.outcomes.files import RESULTS, job_name
from experiments.outcomes.gather import table_result
from experiments.outcomes.verdicts import verdicts
from experiments.regimes import REGIMES, Regime, find_regime
from experiments.run import view
from experiments.run.execute import work
from experiments.run.jobs import check_data, run_jobs
from experiments.run.plan import Asked, Job, ask, make_jobs
from experiments.run.processes import end_with_parent, keep_to_cores
from experiments.run.resolve import NotRun, Resolved, Settings, check_init
from experiments.run.results import Store, refuse_strange
from experiments.run.slurm import Slurm
from experiments.tables import NOT_IN_ROWS, TABLES, Table, find_table

PROGRAM = ("python", "-m", "experiments.run")


def main(argv: Sequence[str] | None = None) -> int:
    """Run tables and return the exit code: 0 on success, 2 for an error that the user can fix, 130 after Ctrl-C, 75
    after SIGTERM.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser()
    args, rest = parser.parse_known_args(words)
    overrides, unknown = split_config_arguments(rest)
    try:
        if unknown:
            flags = [option for action in parser._actions for option in action.option_strings]
            raise UserError(f"{unknown[0]} is not an option: {did_you_mean(unknown[0].split('=')[0], flags)}")
        if any(word.startswith("--config=") for word in overrides):
            raise UserError("--config: the regime chooses the configuration file; give --config.section.key=value")
        for key in ("init", "train.seed", "train.patience"):
            if any(word.startswith(f"--config.{key}=") for word in overrides):
                raise UserError(f"--config.{key}: {NOT_IN_ROWS[key]}")
        if args.module:
            overrides.append(f"--config.module={args.module}")
        with stop_on_signals():
            return run(args, tuple(overrides), words)
    except UserError as error:
        return fail(str(error))
    except (Interrupted, KeyboardInterrupt) as stop:
        print(f"interrupted; the same command goes on from there. {stop}".rstrip(), file=sys.stderr)
        return PREEMPTED if isinstance(stop, Interrupted) and stop.preempted else INTERRUPTED


def make_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = Parser(
        prog="python -m experiments.run",
        description=(__doc__ or "").splitlines()[0],
        epilog="--config.section.key=value changes every training, except the keys that a row sets itself",
        allow_abbrev=False,
    )
    parser.add_argument("tables", nargs="+", metavar="TABLE", help=f"{', '.join(TABLES)}, or your own FILE.py")
    parser.add_argument(
        "--regime", "--scale", default="scenes", help=f"one of {', '.join(REGIMES)}; see experiments/regimes.py"
    )
    parser.add_argument(
        "--row", action="append", default=[], metavar="NAME", help="run only this row; give it again for more rows"
    )
    parser.add_argument(
        "--seeds", type=positive, default=0, help="trainings of each row; by default the regime's number"
    )
    parser.add_argument(
        "--steps", type=positive, default=0, help="steps of each training; by default the regime's number"
    )
    parser.add_argument("--runs", default="runs/tables", help="folder of the run directories")
    parser.add_argument("--out", default=RESULTS, help="folder of the results")
    parser.add_argument("--data_dir", default="", help="folder of the data; scenes are generated")
    parser.add_argument(
        "--init", default="", help="model folder of pre-trained weights, or a folder with one for each backbone"
    )
    parser.add_argument("--module", default="", metavar="FILE", help="Python file with parts of your own")
    parser.add_argument("--plan", action="store_true", help="print the jobs and their estimated time, and run nothing")
    parser.add_argument(
        "--commands",
        action="store_true",
        help="print a command for each job, and run nothing; once they are run, leave out --commands to get the tables",
    )
    parser.add_argument("--launcher", default="local", choices=("local", "slurm"), help="where the jobs run")
    parser.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="parameter of submitit, such as timeout_min=600",
    )
    parser.add_argument(
        "--again", action="store_true", help="replace results of another commit or of another configuration"
    )
    parser.add_argument(
        "--parallel", type=positive, default=1, metavar="N", help="local jobs at once, each on a share of the cores (1)"
    )
    parser.add_argument("--job", default="", help=argparse.SUPPRESS)  # The lines of --commands have it.
    parser.add_argument("--tethered", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--cores", default="", help=argparse.SUPPRESS)
    return parser


def run(args: argparse.Namespace, overrides: tuple[str, ...], words: Sequence[str]) -> int:
    """Run the tables as the arguments say, and return the exit code."""
    if args.parallel > 1 and args.launcher != "local":
        raise UserError(f"--parallel {args.parallel}: jobs of {args.launcher} all run at once; leave it out")
    regime, tables = find_regime(args.regime), [find_table(name) for name in dict.fromkeys(args.tables)]
    check_rows(args.row, tables)
    settings = Settings(overrides, args.data_dir, args.init, args.steps)
    asked = ask(tables, args.row, regime, settings, args.seeds)
    check_init(((one.table, one.row) for one in asked if one.resolved), regime, args.init, needed=not args.plan)
    jobs = make_jobs(asked)
    runs, out = Path(args.runs, args.regime), Path(args.out, args.regime)
    if args.job:
        return one_job(args, jobs, runs)
    store = Store(out, runs, git_commit(), args.again)
    pending = find_pending(asked, jobs, store)
    console = view.wide(Console(stderr=args.commands))  # A shell may read the commands, so stdout has nothing else.

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    if store.kept:
        count, now = len(store.kept), short(store.commit)
        say(f"{count} rows have results of other commits than {now}: kept; --again replaces them")
    waiting = [job for job in jobs if pending[job.name]]
    if args.plan:
        if store.strange:  # Without the weights, finished rows look like those of another configuration.
            check_init(((one.table, one.row) for one in asked if one.resolved), regime, args.init, needed=True)
        for line in store.strange:
            say(f"{line}; refused without --again")
        for one in asked:
            if isinstance(one.resolved, NotRun):
                say(f"{one.name} is not run: {one.resolved.reason}")
        plan(console, jobs, pending, runs, view.Rates(store.all_rows()), args.parallel)
        return 0
    refuse_strange(store)
    if args.commands:
        for job in waiting:
            print(shlex.join([*PROGRAM, *(word for word in words if word != "--commands"), "--job", job.name]))
        return 0
    failed: list[str] = []
    one_folder = Path(args.runs).resolve() == Path(args.out).resolve()
    with alone(args.runs, "--runs"), nullcontext() if one_folder else alone(args.out, "--out"):
        if waiting:
            check_data(waiting)
            slurm = Slurm(runs / "slurm", args.slurm) if args.launcher == "slurm" else None
            failed = run_jobs(waiting, [*PROGRAM, *words], runs, console, asked, store, args.parallel, slurm)
        show(console, tables, regime, asked, store)
    if failed:
        raise UserError(f"{len(failed)} of {len(waiting)} jobs failed; {failed[0]}; the same command tries them again")
    if lost := [one.name for one in asked if store.missing(one)]:
        raise UserError(
            f"{lost[0]}: its job ended, yet left no result of commit {short(store.commit)}; where the code has changed "
            "meanwhile, the same command runs it again"
        )
    return 0


def alone(folder: str, option: str) -> AbstractContextManager[None]:
    """Return a context in which no other runner can work in a folder."""
    busy = f"{folder}: another runner is at work there; wait for it, or give another {option}"
    return locked(Path(folder, "runner.lock"), busy, option=option)


def check_rows(names: Sequence[str], tables: Sequence[Table]) -> None:
    """Raise a UserError for a row that none of the tables has."""
    known = [name for table in tables for name in table.named_rows()]
    for name in names:
        if name not in known:
            raise UserError(f"--row {name!r} is not known: {did_you_mean(name, known)}")


def find_pending(asked: Sequence[Asked], jobs: Sequence[Job], store: Store) -> view.Pending:
    """Return the keys of the evaluations that each job lacks."""
    lacking: dict[str, set[str]] = {job.name: set() for job in jobs}
    for one in asked:
        if isinstance(one.resolved, Resolved):
            for seed in store.missing(one):
                lacking[job_name(one.resolved.training_key, seed)].add(one.resolved.evaluation_key)
    return lacking


def plan(
    console: Console, jobs: Sequence[Job], pending: view.Pending, runs: Path, measured: view.Rates, at_once: int
) -> None:
    """Print the jobs and their estimated time."""
    console.print(view.plan_table(jobs, pending, runs, measured))
    count = sum(bool(pending[job.name]) for job in jobs)
    left = hours(view.time_left(jobs, pending, runs, measured, at_once))
    console.print(f"{count} of {len(jobs)} jobs to run, estimated time: {left}", highlight=False)


def one_job(args: argparse.Namespace, jobs: Sequence[Job], runs: Path) -> int:
    """Do one job in this process."""
    if args.tethered:
        end_with_parent()
    by_name = {job.name: job for job in jobs}
    if args.job not in by_name:
        raise UserError(f"--job {args.job}: none of these tables, with these settings; print the commands again")
    keep_to_cores(args.cores)
    enable_compilation_cache()
    work(by_name[args.job], runs, again=args.again)
    return 0


def show(console: Console, tables: Sequence[Table], regime: Regime, asked: Sequence[Asked], store: Store) -> None:
    """Write the results of every row that has some, and print the tables."""
    for table in tables:
        rows = [one for one in asked if one.table is table]
        contents = {table.row_name(one.row): found for one in rows if (found := store.collect(one)) is not None}
        remarks: list[str] = []
        result = table_result(replace(table, rows=tuple(one.row for one in rows)), regime, contents, remarks)
        result = replace(result, folder=store.out / table.name)
        console.print(f"\n{table.name}: {table.title}\n{table.source}", highlight=False, markup=False, soft_wrap=True)
        console.print(view.results_table(result))
        said = (": ".join(cell.text for cell in verdict_cells(one)[:2]) for one in verdicts(result))
        for line in [*remarks, *provenance(result), *said]:
            console.print(line, highlight=False, markup=False)
    console.print(f"results: {store.out}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    end_process(main())
