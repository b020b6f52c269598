"""The runner: what it runs, what it keeps, and what it refuses."""

import fcntl
import io
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from rich.console import Console

from deeplab_jax.errors import UserError
from deeplab_jax.files import locked, save_json
from deeplab_jax.train.record import records
from experiments.outcomes.files import job_name, state_of, training_seconds
from experiments.outcomes.gather import read_tables
from experiments.outcomes.per_image import counts_file, counts_of, read_counts, write_counts
from experiments.outcomes.verdicts import verdicts
from experiments.run import __main__ as run
from experiments.run import execute, jobs, results
from experiments.run.execute import pretrained, work
from experiments.run.plan import Job, evaluation_counts, evaluation_file, start_file
from experiments.run.processes import keep_to_cores, start_job
from experiments.run.resolve import fingerprint
from experiments.run.slurm import FORGOTTEN, OnNode, Slurm, SlurmJob
from experiments.run.view import Rates, View
from tests.support.tiny import read_metrics, tiny_config, tiny_models

THIN = (
    "--config.model.options.width=0.125",
    "--config.model.options.aspp_channels=8",
    "--config.data.options.size=(65,65)",
    "--config.data.crop_size=(65,65)",
    "--config.evaluate.pad_to=((65,65),)",
    "--config.train.batch_size=4",
    "--config.train.pictures=0",
    "--config.train.devices=1",
)


def metrics(miou: float, **more):
    """What an evaluation keeps."""
    model = {"name": "deeplabv3_resnet18", "num_classes": 9, "output_stride": 16, "options": {"width": 0.125}}
    protocol = {"sizes_run": [[65, 65]], "scales": [1.0], "flip": False, "output_stride": 16}
    kept = {"miou": miou, "pixel_accuracy": 0.5, "mean_accuracy": 0.5, "per_class": [], "protocol": protocol}
    bands = [{"width": width, "miou": miou / 2, "pixels": 9} for width in (1, 2, 4, 8, 16, 32)]
    trimap = {"around": "labels", "bands": bands}
    return {**kept, "model": model, "versions": {"jax": "0"}, "seconds": 2.0, "trimap": trimap, **more}


class Here:
    """Starts a job as a call of the command line in this process."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []

    @property
    def names(self) -> list[str]:
        """The jobs that were started."""
        return [command[command.index("--job") + 1] for command in self.commands]

    def start(self, command, log):
        self.commands.append(list(command))
        assert list(command[:3]) == ["python", "-m", "experiments.run"]
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("deeplab-jax: no luck\n")
        return process(run.main(list(command[3:])))


def process(code, stop=lambda: None) -> types.SimpleNamespace:
    """Return what is used of a process that has ended."""
    return types.SimpleNamespace(poll=lambda: code, terminate=stop, wait=lambda: code)


@pytest.fixture
def here(monkeypatch, tmp_path):
    """Run everything but the training itself: each job leaves metrics that depend on its seed."""
    started = Here()

    def pretend(job, runs, *, again):
        for key in job.evaluations:
            record = {"step": job.config.train.steps, "train/loss": 1.0, "train/images_per_second": 8.0}
            file = evaluation_file(runs / job.name, key)
            save_json(file, {"commits": [run.git_commit()], **metrics(0.5 + 0.01 * job.seed)})
            (runs / job.name / "metrics.jsonl").write_text(json.dumps(record) + "\n")

    monkeypatch.setattr(run, "work", pretend)
    monkeypatch.setattr(jobs, "start_job", started.start)
    monkeypatch.setattr(run, "keep_to_cores", lambda share: None)
    monkeypatch.setattr(run, "enable_compilation_cache", lambda: None)
    monkeypatch.setattr(jobs, "POLL", 0.0)
    return started


def call(tmp_path, *words):
    """Run tables, with one training of each row unless the words say otherwise."""
    words = words if "--seeds" in words else (*words, "--seeds", "1")
    return run.main([*words, "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])


def table_file(tmp_path, name):
    return tmp_path / "out" / "scenes" / f"{name}.json"


def row_job(tmp_path, name, seed):
    """The run directory of a row's training."""
    return tmp_path / "runs/scenes" / job_name(result(tmp_path, name)["training"], seed)


def result(tmp_path, name):
    """What is kept of a row, given as `TABLE/ROW`."""
    table, row = name.split("/")
    return json.loads(table_file(tmp_path, table).read_text())["rows"][row]


# What is run, and what it leaves.


def test_a_table_is_run_written_and_printed(here, tmp_path, capsys) -> None:
    assert call(tmp_path, "v3_table6", "v3_table10", "--seeds", "2") == 0
    # Table 10 takes two networks more than Table 6's; both seeds of each.
    assert len(here.names) == len(set(here.names)) == 6
    assert [name[-1] for name in here.names] == ["0"] * 3 + ["1"] * 3
    printed = capsys.readouterr().out
    assert re.search(r"16 +77\.21 +50\.50 +50\.00 to 51\.00, 2 seeds", printed)
    assert "not run here: needs COCO" in printed
    found = result(tmp_path, "v3_table6/eval_os_8-ms")
    assert found["cells"] == {"eval_os": 8, "ms": True, "flip": False, "coco": False}
    assert found["paper"] == {"miou": 79.45} and found["config"]["train"]["steps"] == 450
    first, second = found["seeds"]
    assert (first["seed"], second["seed"], second["miou"]) == (0, 1, 0.51)
    # 450 steps of 8 images at 8 images a second.
    assert first["seconds"] == {"training": 450.0, "evaluation": 2.0}
    assert {"commits", "versions", "per_class", "protocol"} <= set(first)
    kept = [
        json.loads((tmp_path / f"out/scenes/{name}/trainings.json").read_text()) for name in ("v3_table6", "v3_table10")
    ]
    assert sorted({**kept[0], **kept[1]}) == sorted(here.names)
    # Table 6's training is one of Table 10's, and each table has its log.
    assert set(kept[0]) < set(kept[1]) and len(kept[0]) == 2
    assert [record["step"] for record in kept[0][here.names[0]]] == [450]
    names = ["eval_os_16", "eval_os_8", "eval_os_8-ms", "eval_os_8-ms-flip"]
    whole = json.loads(table_file(tmp_path, "v3_table6").read_text())
    assert list(whole["rows"]) == names, "the row that needs COCO has none"
    assert (whole["table"], whole["measures"]) == ("v3_table6", ["miou"])
    files = {path.name for path in (tmp_path / "out/scenes").iterdir()}
    assert files == {"v3_table6.json", "v3_table10.json", "v3_table6", "v3_table10"}


def test_counts_by_image_outlive_the_runs(here, tmp_path, monkeypatch) -> None:
    """Half the pixels of one image are right in both rows, as the pretended mIoU says."""
    pretend = run.work

    def with_counts(job, runs, *, again):
        pretend(job, runs, again=again)
        every = [{"name": "a", "right": [50], "labelled": [100], "predicted": [50]}]
        for key in job.evaluations:
            write_counts(evaluation_counts(runs / job.name, key), counts_of(every))

    monkeypatch.setattr(run, "work", with_counts)
    assert call(tmp_path, "v3_table6") == 0
    shutil.rmtree(tmp_path / "runs")
    assert call(tmp_path, "v3_table6") == 0
    row = result(tmp_path, "v3_table6/eval_os_8")
    kept = counts_file(tmp_path / "out/scenes/v3_table6", f"{row['training']}_seed0", row["evaluation"])
    assert read_counts(kept, 0.5) is not None and len(list(kept.parent.glob("*.npz"))) == 4
    assert len(here.names) == 1


def test_the_runner_judges_by_the_counts_of_its_tables(here, tmp_path, monkeypatch) -> None:
    """The verdicts that it prints are those of the report, whose intervals are also over images."""
    pretend, judged = run.work, []

    def with_counts(job, runs, *, again):
        pretend(job, runs, again=again)
        for key in job.evaluations:
            rights = {"a": 50, "b": 60 + 10 * job.evaluations[key]["flip"]}
            counts = counts_of(
                [
                    {"name": name, "right": [right], "labelled": [100], "predicted": [100]}
                    for name, right in rights.items()
                ]
            )
            found = evaluation_file(runs / job.name, key)
            save_json(found, {**json.loads(found.read_text()), "miou": counts.miou()})
            write_counts(evaluation_counts(runs / job.name, key), counts)

    monkeypatch.setattr(run, "work", with_counts)
    monkeypatch.setattr(run, "verdicts", lambda result: judged.extend(verdicts(result)) or [])
    assert call(tmp_path, "v3_table6", "--seeds", "2") == 0
    reported, _ = read_tables(tmp_path / "out", ("scenes",))
    assert len(judged) == 3 and all(one.images is not None for one in judged)
    (expected,) = (verdicts(one) for one in reported if one.table.name == "v3_table6")
    assert [(one.word, one.interval) for one in judged] == [(one.word, one.interval) for one in expected]


def test_another_run_of_the_same_key_leaves_counts_and_logs_of_a_result_alone(here, tmp_path, monkeypatch) -> None:
    """As what an earlier `--out` of one's own left in the run directories, beside results from another machine."""
    pretend = run.work

    def with_right(right: int):
        def work(job, runs, *, again):
            pretend(job, runs, again=again)
            every = [{"name": "a", "right": [right], "labelled": [100], "predicted": [100]}]
            counts = counts_of(every)
            for key in job.evaluations:
                found = evaluation_file(runs / job.name, key)
                save_json(found, {**json.loads(found.read_text()), "miou": counts.miou()})
                write_counts(evaluation_counts(runs / job.name, key), counts)
            weights = runs / results.weights_name(job.pretraining)
            weights.mkdir(exist_ok=True)
            for folder, step in ((runs / job.name, job.config.train.steps), (weights, 1500)):
                record = {"step": step, "train/loss": right, "train/images_per_second": 8.0}
                (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")

        return work

    words = ("v3_table6", "--row", "eval_os_16")
    monkeypatch.setattr(run, "work", with_right(50))
    assert call(tmp_path, *words) == 0
    row, folder = result(tmp_path, "v3_table6/eval_os_16"), tmp_path / "out/scenes/v3_table6"
    assert row["seeds"][0]["miou"] == 50 / 150
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(json.loads(before["trainings.json"])) == len(before) == 2, "the training, its backbone; its counts"
    # Another training of the same key, in the same run directories.
    monkeypatch.setattr(run, "work", with_right(60))
    shutil.rmtree(tmp_path / "runs")
    run.main([*words, "--seeds=1", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "mine")])
    assert call(tmp_path, *words) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert result(tmp_path, "v3_table6/eval_os_16") == row
    # A new seed brings its own counts and its own log.
    assert call(tmp_path, *words, "--seeds", "2") == 0
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    logs = json.loads(after.pop("trainings.json"))
    assert len(after) == 2 and before.items() - {("trainings.json", before["trainings.json"])} <= after.items()
    losses = {name[-5:]: log[0]["train/loss"] for name, log in logs.items()}
    assert losses == {"seed0": 50, "seed1": 60, "ights": 50}


def test_what_is_finished_is_not_run_again(here, tmp_path) -> None:
    assert call(tmp_path, "v3_table6") == 0
    assert call(tmp_path, "v3_table6") == 0
    assert len(here.names) == 1
    # More seeds, more evaluations of the same training: only what is missing.
    assert call(tmp_path, "v3_table6", "--seeds", "2") == 0
    assert call(tmp_path, "v3plus_figure5", "--row", "resnet_101") == 0
    assert [name[-1] for name in here.names] == ["0", "1", "0"]
    assert [entry["seed"] for entry in result(tmp_path, "v3_table6/eval_os_16")["seeds"]] == [0, 1]


def test_results_do_not_need_their_runs(here, tmp_path, capsys) -> None:
    call(tmp_path, "v3_table1", "--row", "output_stride_8")
    before = result(tmp_path, "v3_table1/output_stride_8")
    (tmp_path / "runs").rename(tmp_path / "gone")
    assert call(tmp_path, "v3_table1", "--row", "output_stride_8") == 0
    assert len(here.names) == 1 and result(tmp_path, "v3_table1/output_stride_8") == before
    assert "75.18" in capsys.readouterr().out


def test_a_runner_killed_before_it_wrote_a_row_writes_it_then(here, tmp_path) -> None:
    call(tmp_path, "v3_table6", "--row", "eval_os_16")
    table_file(tmp_path, "v3_table6").unlink()
    assert call(tmp_path, "v3_table6", "--row", "eval_os_16") == 0
    assert len(here.names) == 1 and result(tmp_path, "v3_table6/eval_os_16")["seeds"][0]["miou"] == 0.5


def test_multiply_adds_and_trimaps_have_their_columns(here, tmp_path, capsys, monkeypatch) -> None:
    row = ("--row", "train_os_16-eval_os_16")
    assert call(tmp_path, "v3plus_table3", *row) == 0
    counts = result(tmp_path, "v3plus_table3/train_os_16-eval_os_16")["multiply_adds"]
    assert 0 < counts["exact"] <= counts["space_to_batch"]
    with monkeypatch.context() as patch:  # What is counted is kept with the row, another seed or none.
        patch.setattr(results, "_multiply_adds", None)
        assert call(tmp_path, "v3plus_table3", *row, "--seeds", "2") == 0
    assert result(tmp_path, "v3plus_table3/train_os_16-eval_os_16")["multiply_adds"] == counts
    assert "81.02" in capsys.readouterr().out
    assert call(tmp_path, "v3plus_figure5", "--row", "resnet_101") == 0
    printed = capsys.readouterr().out
    assert "mIoU within 32 px" in printed and "25.00" in printed


OWN = """
from experiments.tables.networks import deeplabv3
from experiments.tables.table import Row, Table

TABLE = Table(
    name="{name}",
    title="Rates of my own",
    source="my notes",
    columns=("rates",),
    rows=tuple(Row((str(rates),), train=deeplabv3(rates=rates)) for rates in ((6, 12), (12, 24))),
)
"""


def setting(key: str, value: object) -> str:
    """A table whose rows set a key."""
    return OWN.format(name="mine").replace("deeplabv3(rates=rates)", f"{{**deeplabv3(), {key!r}: {value!r}}}")


CLAIM = (
    OWN.format(name="mine")
    .replace("import Row", "import Claim, Row")
    .replace("columns=", 'claims=(Claim("fewer is better", better=("(6, 12)",), worse=("{worse}",)),), columns=')
)


def test_a_claim_of_ones_own_needs_no_number(here, tmp_path, capsys) -> None:
    """Its rows are trained as often as those with a claim of a paper, and it gets a verdict."""
    file = tmp_path / "mine.py"
    file.write_text(CLAIM.format(worse="(12, 24)"))
    assert run.main([str(file), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert sorted(name[-1] for name in here.names) == ["0", "0", "1", "1", "2", "2"]
    assert "fewer is better: undecided" in capsys.readouterr().out, "all differences are 0"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ('**deeplabv3(rates=rates), "optimizer.learning_rat": 0.1', "optimizer.learning_rat is no key of the confi"),
        ('**deeplabv3(rates=rates), "model.options.aspp_rate": (1,)', "did you mean model.options.aspp_rates"),
        ('**deeplabv3(rates=rates), "train.steps": "many"', "train.steps is 'many'; give a value such as 450"),
        ('"model.name": "segnet"', "0 of 0 jobs"),
    ],
)
def test_a_mistyped_change_of_a_row_gets_one_line(here, tmp_path, capsys, changed, message) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN.format(name="mine").replace("deeplabv3(rates=rates)", f"{{{changed}}}"))
    code = call(tmp_path, str(file), "--plan")
    captured = capsys.readouterr()
    assert (code, message in captured.err + captured.out) == (0 if "segnet" in changed else 2, True)
    if code:
        (line,) = captured.err.splitlines()
        assert "table mine, row 6_12: " in line
    if "learning_rat" in changed:
        assert "did you mean optimizer.learning_rate" in line


def test_runs_and_results_may_share_a_folder(here, tmp_path) -> None:
    both = str(tmp_path / "both")
    assert run.main(["v3_table6", "--row", "eval_os_16", "--runs", both, "--out", both]) == 0
    assert here.names and (tmp_path / "both" / "scenes" / "v3_table6.json").is_file()


def test_a_table_of_ones_own_is_a_file(here, tmp_path, capsys) -> None:
    file = tmp_path / "my_rates.py"
    file.write_text(OWN.format(name="my_rates"))
    assert call(tmp_path, str(file), "--plan") == 0
    assert "2 of 2 jobs to run, estimated time: unknown" in capsys.readouterr().out and here.names == []
    assert call(tmp_path, str(file), "--row", "12_24") == 0
    assert re.search(r"\(12, 24\) +50\.00", capsys.readouterr().out)
    assert list(json.loads(table_file(tmp_path, "my_rates").read_text())["rows"]) == ["12_24"]
    # Its finished row tells how long the other one takes, and the training of the backbone.
    assert call(tmp_path, str(file), "--plan") == 0
    assert "1 of 2 jobs to run, estimated time: 33 min" in capsys.readouterr().out


def test_a_changed_file_of_ones_own_parts_makes_other_trainings(here, tmp_path, capsys) -> None:
    parts, table = tmp_path / "my_parts.py", tmp_path / "mine.py"
    parts.write_text("BACKBONES = {}\n")
    table.write_text(OWN.format(name="mine"))
    words = [str(table), "--row", "12_24", "--module", str(parts)]
    assert call(tmp_path, *words) == 0 and call(tmp_path, *words) == 0
    first = list(here.names)
    assert len(first) == 1
    parts.write_text("BACKBONES = {}  # changed\n")
    fingerprint.cache_clear()  # Another process.
    assert call(tmp_path, *words) == 2
    assert "--again" in capsys.readouterr().err, "its results are of another configuration"
    assert call(tmp_path, *words, "--again") == 0
    assert len(here.names) == 2 and len(set(here.names)) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OWN.format(name="v3_table5"), "'v3_table5' is taken, or is no name of a file"),
        (OWN.format(name="../out"), "'../out' is taken, or is no name of a file"),
        ("TABLE = 1", "it holds no TABLE"),
        ("import nothing_at_all", "it cannot be run (ModuleNotFoundError"),
        (
            OWN.format(name="mine").replace("(str(rates),)", "(str(rates), 1)"),
            "row ('(6, 12)', 1): give a tuple with one cell for each of the columns ('rates',)",
        ),
        (
            OWN.format(name="mine").replace("(str(rates),)", "[str(rates)]"),
            "row ['(6, 12)']: give a tuple with one cell",
        ),
        (
            OWN.format(name="mine").replace("deeplabv3(rates=rates)", '{"train.steps": 9}'),
            'row (\'(6, 12)\',) trains no model; give its train a "model.name", such as "deeplabv3_resnet101"',
        ),
        (
            setting("train.patience", 1),
            "row ('(6, 12)',) sets train.patience: the trainings of a table have one length; leave it out",
        ),
        (
            setting("train.seed", 1),
            "row ('(6, 12)',) sets train.seed: the runner counts the seeds of a row from 0; leave it out",
        ),
        (
            setting("data.dir", "other"),
            "row ('(6, 12)',) sets data.dir: all rows read the folder of --data_dir; leave it out",
        ),
        (
            setting("module", "my_parts.py"),
            "row ('(6, 12)',) sets module: give the command --module FILE",
        ),
        (
            OWN.format(name="mine").replace("(str(rates),)", "(str(rates[0] // 100),)"),
            "two rows have the name '0', which is made of their cells; change a cell of one",
        ),
        (
            OWN.format(name="mine").replace("(str(rates),)", "('-' * rates[0],)"),
            "its name is made of its cells; give each a letter from a to z or a digit",
        ),
        (CLAIM.format(worse="(6, 13)"), "claim 'fewer is better' is about ('(6, 13)',): did you mean ('(6, 12)',)"),
        (
            CLAIM.format(worse="(12, 24)").replace("claims=", 'measures=("mioo",), claims='),
            "measure 'mioo' is not known: did you mean miou?",
        ),
        (None, "no such file; correct the path"),
    ],
)
def test_a_file_that_holds_no_table_gets_one_line(here, tmp_path, capsys, text, message) -> None:
    file = tmp_path / "own.py"
    if text is not None:
        file.write_text(text)
    assert call(tmp_path, str(file)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{file}: " in line and message in line


def test_the_cityscapes_table_is_not_run_on_the_data_of_others(here, tmp_path, capsys) -> None:
    assert call(tmp_path, "v3_cityscapes") == 0
    assert here.names == [] and "not run here: on this data it is v3_table6 again" in capsys.readouterr().out


def test_figure_4_takes_no_job(here, tmp_path, capsys) -> None:
    assert call(tmp_path, "v3_figure4") == 0
    assert here.names == []
    assert f"{100 * 63**2 / 65**2:.2f}" == "93.94" and "93.94" in capsys.readouterr().out
    assert not list((tmp_path / "out").rglob("*.json")), "what is computed is kept nowhere"


def test_jobs_that_fail_cost_nothing_else(here, tmp_path, monkeypatch, capsys) -> None:
    pretend = run.work

    def sometimes(job, runs, *, again):
        if job.config.model.output_stride == 8:
            raise UserError("no luck")
        pretend(job, runs, again=again)

    monkeypatch.setattr(run, "work", sometimes)
    words = ("v3_table1", "--row", "output_stride_8", "--row", "output_stride_16")
    assert call(tmp_path, *words) == 2
    captured = capsys.readouterr()
    assert re.search(r"1 of 2 jobs failed; \w+_seed0: deeplab-jax: no luck; the same", captured.err.splitlines()[-1])
    assert "not yet" in captured.out and result(tmp_path, "v3_table1/output_stride_16")["seeds"]
    monkeypatch.setattr(run, "work", pretend)
    assert call(tmp_path, *words) == 0
    assert len(here.names) == 3


def test_ctrl_c_stops_the_runner_once_its_job_has_saved(here, tmp_path, monkeypatch, capsys) -> None:
    stopped = []
    started = process(130)
    monkeypatch.setattr(jobs, "start_job", lambda command, log: started)
    assert call(tmp_path, "v3_table1") == 130
    assert "goes on from there. The running jobs have saved their state." in capsys.readouterr().err
    started.poll, started.terminate = interrupt, lambda: stopped.append(True)
    assert call(tmp_path, "v3_table1") == 130
    assert stopped == [True]


def interrupt():
    raise KeyboardInterrupt


def test_a_terminal_shows_how_far_the_jobs_are(tmp_path) -> None:
    both = [Job(key, 0, tiny_config(), {"e": {}}, ["t/r"]) for key in ("first", "second")]
    (tmp_path / "first_seed0").mkdir()
    line = {"step": 3, "train/loss": 0.25, "train/images_per_second": 1.0}
    (tmp_path / "first_seed0/metrics.jsonl").write_text(json.dumps(line) + "\n")
    model = {"name": "cascade_tiny", "output_stride": 16}
    content = {"config": {"model": model, "train": {"steps": 6, "batch_size": 2}}, "training": "k", "evaluation": "e"}
    seconds = {"training": 3600.0, "evaluation": 1800.0}
    measured = Rates([{**content, "seeds": [{"seed": 0, "seconds": seconds}]}])
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with View(console, both, tmp_path, measured, 1) as view:
        view.change(both[0], "running")
        view.refresh()
    shown = console.file.getvalue()
    assert "step 3 of 6, loss 0.2500" in shown and "0 done, 1 running, 1 waiting, 0 failed" in shown
    # Half a training of an hour and a whole one, and two evaluations of half an hour.
    assert "time left: 2.5 h" in shown


# The plan, and commands for elsewhere.


def test_times_are_those_of_what_is_most_alike() -> None:
    def content(name, stride, evaluation, training, evaluating) -> dict:
        config = {"model": {"name": name, "output_stride": stride}, "train": {"steps": 10, "batch_size": 2}}
        entry = {"seed": 0, "seconds": {"training": training, "evaluation": evaluating}}
        return {"config": config, "training": f"{name}{stride}", "evaluation": evaluation, "seeds": [entry]}

    first = content("a", 16, "plain", 10, 1)
    # Two rows of one training and evaluation count once.
    found = Rates([first, first, content("a", 8, "plain", 30, 4), content("b", 16, "flip", 50, 7)])

    def seconds(name, stride, *evaluations) -> float | None:
        config = tiny_config(**{"model.name": name, "model.output_stride": stride})
        return found.seconds(Job("k", 0, config), steps=2, evaluations=evaluations)

    assert seconds("a", 16, "plain") == 2 * 1 + 1
    assert seconds("a", 8, "plain", "flip") == 2 * 3 + 4 + 7
    assert seconds("a", 32, "plain") == 2 * 2 + 2.5, "no such output stride: the mean over the model's"
    assert seconds("c", 16) == 2 * 3, "no such model: the mean over all"
    assert seconds("c", 16, "scales") == 2 * 3 + 4
    assert Rates([]).seconds(Job("k", 0, tiny_config()), steps=2, evaluations=()) is None


def test_the_plan_invents_no_times(here, tmp_path, capsys) -> None:
    assert call(tmp_path, "v3_table6", "v3_table10", "--plan") == 0
    printed = capsys.readouterr().out
    assert "3 of 3 jobs to run, estimated time: unknown" in printed
    assert "v3_table6, v3_table10 (6 rows)" in printed and "waiting" in printed
    assert here.names == [] and not (tmp_path / "out").exists()


def test_the_plan_estimates_from_what_was_measured(here, tmp_path, capsys) -> None:
    call(tmp_path, "v3_table6")
    capsys.readouterr()
    assert call(tmp_path, "v3_table6", "v3_table10", "--plan") == 0
    printed = capsys.readouterr().out
    # Two trainings of 450 steps at a second each, with two evaluations of 2 s; and the 1500 steps of their backbone.
    assert "2 of 3 jobs to run, estimated time: 40 min" in printed and "finished" in printed


@pytest.mark.parametrize("option", ["--regime", "--scale"])  # Older commands have the second.
def test_a_plan_needs_no_weights(tmp_path, capsys, option) -> None:
    assert call(tmp_path, "v3plus_table1", option, "paper", "--plan") == 0
    assert "5 of 5 jobs to run" in capsys.readouterr().out
    assert call(tmp_path, "v3plus_table1", option, "paper") == 2


def test_a_plan_of_rows_with_results_needs_their_weights(here, tmp_path, capsys, monkeypatch) -> None:
    """Without them finished rows would look like those of another configuration."""
    monkeypatch.setattr(run, "check_data", lambda waiting: None)
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    words = ("v3_table6", "--row", "eval_os_16", "--regime", "camvid")
    assert call(tmp_path, *words, "--init", str(tmp_path)) == 0
    assert call(tmp_path, *words, "--init", str(tmp_path), "--plan") == 0
    assert "0 of 1 jobs to run" in capsys.readouterr().out
    assert call(tmp_path, *words, "--plan") == 2
    assert "starts from pre-trained weights: give --init FOLDER" in capsys.readouterr().err


def test_commands_are_all_that_a_shell_gets(here, tmp_path, capsys, monkeypatch) -> None:
    call(tmp_path, "v3_table6")
    monkeypatch.setattr(run, "git_commit", lambda: "another")
    capsys.readouterr()
    assert call(tmp_path, "v3_table6", "v3_table10", "--commands") == 0
    printed = capsys.readouterr()
    assert all(line.startswith("python -m experiments.run") for line in printed.out.splitlines())
    assert "rows have results of other commits" in printed.err


def test_commands_are_jobs(here, tmp_path, capsys) -> None:
    assert call(tmp_path, "v3_table1", "--commands", "--steps", "7") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and all(line.startswith("python -m experiments.run v3_table1 --steps 7") for line in lines)
    assert all("--job" in line and "--commands" not in line for line in lines)
    assert run.main(shlex.split(lines[2])[3:]) == 0
    assert call(tmp_path, "v3_table1", "--row", "output_stride_32", "--steps", "7") == 0
    assert here.names == [] and result(tmp_path, "v3_table1/output_stride_32")["config"]["train"]["steps"] == 7


# What is refused, and what is said.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["v3_tabel5"], "table 'v3_tabel5' is not known: did you mean v3_table5"),
        (["v3_table5", "--regime", "scene"], "--regime 'scene': did you mean scenes"),
        (["v3_table6", "--row", "eval_os_9"], "--row 'eval_os_9' is not known: did you mean eval_os_8"),
        (["v3_table6", "--sedes", "2"], "--sedes is not an option: did you mean --seeds"),
        (["v3_table6", "--config.init=models/x"], "--config.init: the runner sets it; give --init"),
        (
            ["v3_table6", "--config.train.seed=3"],
            "counts the seeds of a row from 0; leave it out, or give their number",
        ),
        (["v3_table6", "--config.train.patience=1"], "the trainings of a table have one length; leave it out"),
        (["v3_table6", "--config.train.stepps=3"], "stepps"),
        (["v3_table6", "--config=configs/voc.py"], "the regime chooses the configuration file"),
        (["v3_table6", "--regime", "camvid"], "starts from pre-trained weights: give --init FOLDER"),
        (["v3_table1", "--regime", "camvid"], "data set 'camvid' reads files"),
        (["v3_table6", "--job", "abc_seed0"], "--job abc_seed0: none of these tables"),
        (["v3_table6", "--launcher", "slrum"], "invalid choice"),
        (["v3_table6", "--parallel", "0"], "argument --parallel: '0': give a whole number of at least 1"),
        (["v3_table6", "--steps", "0"], "argument --steps: '0': give a whole number of at least 1"),
        (["v3_table6", "--seeds", "-1"], "argument --seeds: '-1': give a whole number of at least 1"),
        (["v3_table6", "--parallel", "2", "--launcher", "slurm"], "jobs of slurm all run at once; leave it out"),
    ],
)
def test_mistakes_get_one_line(here, tmp_path, capsys, words, message) -> None:
    try:
        assert call(tmp_path, *words) == 2
    except SystemExit as stop:
        assert stop.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and here.names == []


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ("", ""),
        ("[]", "it holds no object"),
        ("{}", "it has no 'rows'"),
        ('{"rows": {"eval_os_16": {"seeds": 1}}}', "row eval_os_16: it has no 'row'"),
    ],
)
def test_a_damaged_result_is_refused_and_what_was_run_is_not_lost(here, tmp_path, capsys, damage, why) -> None:
    call(tmp_path, "v3_table6", "--row", "eval_os_16")
    file = table_file(tmp_path, "v3_table6")
    whole = file.read_text()
    file.write_text(damage)
    for more in ((), ("--plan",)):
        capsys.readouterr()
        assert call(tmp_path, "v3_table6", "--row", "eval_os_16", *more) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{file}: cannot be read as a result (" in line and why in line and file.read_text() == damage
    file.unlink()
    assert call(tmp_path, "v3_table6", "--row", "eval_os_16") == 0
    assert file.read_text() == whole and len(here.names) == 1


def test_what_belongs_to_no_row_is_kept(here, tmp_path) -> None:
    call(tmp_path, "v3_table6", "--row", "eval_os_16")
    file = table_file(tmp_path, "v3_table6")
    save_json(file, {"rows": json.loads(file.read_text())["rows"] | {"of_no_row": {"mine": 1}}})
    assert call(tmp_path, "v3_table6") == 0
    assert json.loads(file.read_text())["rows"]["of_no_row"] == {"mine": 1}


def test_damaged_records_of_trainings_are_refused(here, tmp_path, capsys) -> None:
    call(tmp_path, "v3_table6", "--row", "eval_os_16")
    file = tmp_path / "out/scenes/v3_table6/trainings.json"
    file.write_text(file.read_text()[:20])
    assert call(tmp_path, "v3_table6", "--row", "eval_os_16") == 2
    assert f"{file}: cannot be read as a result (" in capsys.readouterr().err


def test_a_result_of_another_commit_is_kept_unless_again(here, tmp_path, capsys, monkeypatch) -> None:
    call(tmp_path, "v3_table6")
    monkeypatch.setattr(run, "git_commit", lambda: "another")
    capsys.readouterr()
    assert call(tmp_path, "v3_table6") == 0
    assert "4 rows have results of other commits than another: kept; --again replaces them" in capsys.readouterr().out
    assert len(here.names) == 1
    assert call(tmp_path, "v3_table6", "--again") == 0
    assert len(here.names) == 2
    assert result(tmp_path, "v3_table6/eval_os_16")["seeds"][0]["commits"] == ["another"]
    assert call(tmp_path, "v3_table6", "--again") == 0
    assert len(here.names) == 2, "what this commit has done is not done again, so that a killed --again goes on"


def test_a_result_of_another_configuration_is_not_overwritten(here, tmp_path, capsys) -> None:
    call(tmp_path, "v3_table6")
    before = result(tmp_path, "v3_table6/eval_os_8")
    capsys.readouterr()
    assert call(tmp_path, "v3_table6", "--steps", "9") == 2
    (line,) = capsys.readouterr().err.splitlines()
    file = table_file(tmp_path, "v3_table6")
    assert f"row eval_os_16 of {file} holds a result of another configuration" in line and "3 rows more" in line
    assert len(here.names) == 1 and result(tmp_path, "v3_table6/eval_os_8") == before
    assert call(tmp_path, "v3_table6", "--steps", "9", "--plan") == 0
    assert "refused without --again" in capsys.readouterr().out
    assert call(tmp_path, "v3_table6", "--steps", "9", "--again") == 0
    assert result(tmp_path, "v3_table6/eval_os_8")["config"]["train"]["steps"] == 9


def test_again_leaves_what_was_not_asked_for(here, tmp_path, monkeypatch) -> None:
    call(tmp_path, "v3_table6", "--row", "eval_os_16", "--seeds", "3")
    old = result(tmp_path, "v3_table6/eval_os_16")["seeds"]
    monkeypatch.setattr(run, "git_commit", lambda: "another")
    assert call(tmp_path, "v3_table6", "--row", "eval_os_16", "--seeds", "1", "--again") == 0
    new = result(tmp_path, "v3_table6/eval_os_16")["seeds"]
    assert [entry["commits"] for entry in new] == [["another"], old[1]["commits"], old[2]["commits"]]


def test_again_replaces_no_seeds_before_all_are_there(here, tmp_path, monkeypatch) -> None:
    words = ("v3_table6", "--row", "eval_os_16", "--seeds", "2")
    call(tmp_path, *words)
    before = result(tmp_path, "v3_table6/eval_os_16")
    pretend = run.work

    def first_only(job, runs, *, again):
        if job.seed:
            raise UserError("no luck")
        pretend(job, runs, again=again)

    monkeypatch.setattr(run, "work", first_only)
    assert call(tmp_path, *words, "--steps", "9", "--again") == 2
    assert result(tmp_path, "v3_table6/eval_os_16") == before
    monkeypatch.setattr(run, "work", pretend)
    assert call(tmp_path, *words, "--steps", "9", "--again") == 0
    assert result(tmp_path, "v3_table6/eval_os_16")["config"]["train"]["steps"] == 9
    assert [name[-1] for name in here.names] == ["0", "1", "0", "1", "1"]


@pytest.mark.parametrize("folder", ["runs", "out"])
def test_two_runners_on_one_folder(here, tmp_path, capsys, folder) -> None:
    (tmp_path / folder).mkdir()
    with (tmp_path / folder / "runner.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert call(tmp_path, "v3_table6") == 2
        assert f"{tmp_path / folder}: another runner is at work there" in capsys.readouterr().err


def test_a_job_that_a_signal_stopped_goes_on(here, tmp_path, monkeypatch) -> None:
    codes, started = [75, 75, 0], here.start
    monkeypatch.setattr(jobs, "start_job", lambda command, log: process(started(command, log).poll() or codes.pop(0)))
    assert call(tmp_path, "v3_table6", "--row", "eval_os_16") == 0
    assert len(here.names) == 3 and not codes


def test_a_job_that_leaves_nothing_is_no_success(here, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(run, "work", lambda job, runs, *, again: None)
    assert call(tmp_path, "v3_table6", "--row", "eval_os_16") == 2
    assert "v3_table6/eval_os_16: its job ended, yet left no result of commit" in capsys.readouterr().err


def test_a_row_says_what_its_backbone_took(here, tmp_path) -> None:
    """Its training is kept as the rows' own are, and outlives the run directories."""
    call(tmp_path, "v3_table6", "--row", "eval_os_16")
    first = result(tmp_path, "v3_table6/eval_os_16")["pretraining"]
    assert first["config"]["model"]["output_stride"] == 32 and first["seconds"] == 0.0
    weights = tmp_path / "runs/scenes" / first["name"]
    weights.mkdir()
    record = {"step": 1500, "train/loss": 1.0, "train/images_per_second": 8.0}
    (weights / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    fourth = row_job(tmp_path, "v3_table6/eval_os_16", 3)
    save_json(start_file(fourth), {"backbone": 0.25})
    call(tmp_path, "v3_table6", "--row", "eval_os_16", "--seeds", "4")  # The fourth seed is new.
    assert result(tmp_path, "v3_table6/eval_os_16")["seeds"][3]["backbone"] == 0.25
    for _ in range(2):
        call(tmp_path, "v3_table6", "--row", "eval_os_16")
        assert result(tmp_path, "v3_table6/eval_os_16")["pretraining"]["seconds"] == 1500.0
        shutil.rmtree(weights, ignore_errors=True)
        assert call(tmp_path, "v3_table6", "--plan") == 0
    assert call(tmp_path, "v3_table6") == 0


# The worker, with a network that trains in a second.


@pytest.fixture
def job():
    with tiny_models():
        config = tiny_config()
        own = config.evaluate.to_dict()
        yield Job("k", 0, config, {"own": own, "flip": {**own, "flip": True, "trimap": (1,)}}, ["t/r"])


def times(runs):
    return {path.name: path.stat().st_mtime_ns for path in (runs / "k_seed0/evaluations").iterdir()}


def test_a_job_trains_once_and_evaluates_what_is_missing(job, tmp_path, capsys) -> None:
    work(job, tmp_path, again=False)
    own, flip = (json.loads(evaluation_file(tmp_path / "k_seed0", key).read_text()) for key in ("own", "flip"))
    assert own["protocol"]["flip"] is False and flip["protocol"]["flip"] is True
    assert "trimap" in flip and "trimap" not in own and "confusion_matrix" not in own
    for key, found in (("own", own), ("flip", flip)):
        counts = read_counts(evaluation_counts(tmp_path / "k_seed0", key), found["miou"])
        assert counts is not None and len(counts.names) == 5 and counts.miou() == pytest.approx(found["miou"])
        assert "per_image" not in found
    logged = [line["val/miou"] for line in read_metrics(tmp_path / "k_seed0") if "val/miou" in line]
    assert own["miou"] == logged[-1]
    before = times(tmp_path)
    work(job, tmp_path, again=False)
    assert times(tmp_path) == before
    evaluation_file(tmp_path / "k_seed0", "own").write_text('{"miou": 0.')
    work(job, tmp_path, again=False)
    assert "own.json: cannot be read" in capsys.readouterr().out
    assert json.loads(evaluation_file(tmp_path / "k_seed0", "own").read_text())["miou"] == own["miou"]
    assert times(tmp_path)["flip.json"] == before["flip.json"]
    assert training_seconds(records(tmp_path / "k_seed0/metrics.jsonl"), 2) > 0


def test_again_sets_the_run_of_another_commit_aside(job, tmp_path) -> None:
    work(job, tmp_path, again=True)
    before = times(tmp_path)
    work(job, tmp_path, again=True)
    assert times(tmp_path) == before and not (tmp_path / "k_seed0.old1").exists()
    starts = json.loads((tmp_path / "k_seed0/run.json").read_text())
    starts[0]["commit"] = "another"
    (tmp_path / "k_seed0/run.json").write_text(json.dumps(starts))
    work(job, tmp_path, again=True)
    assert times(tmp_path) != before
    assert (tmp_path / "k_seed0.old1/evaluations/own.json").exists()


def test_jobs_start_from_one_backbone_that_is_trained_once(job, tmp_path, capsys) -> None:
    job.pretraining = job.config.copy_and_resolve_references()
    job.pretraining.train.steps = 2
    (weights,) = {pretrained(job.pretraining, tmp_path, again=False) for _ in range(2)}
    assert capsys.readouterr().out.count("first the backbone") == 1
    work(job, tmp_path, again=False)
    assert f"tensors from {weights} (scope backbone)" in capsys.readouterr().out
    start = start_file(tmp_path / job.name).read_text()
    assert json.loads(start) == {"backbone": read_metrics(weights)[-1]["val/miou"]}
    # A training that goes on needs the backbone no more, and remembers its own.
    (weights / "metrics.jsonl").write_text(json.dumps({"step": 2, "val/miou": 0.99}) + "\n")
    (tmp_path / "k_seed0/evaluations/own.json").unlink()
    work(job, tmp_path, again=False)
    assert start_file(tmp_path / job.name).read_text() == start
    shutil.rmtree(weights)
    (tmp_path / "k_seed0/evaluations/flip.json").unlink()
    work(job, tmp_path, again=False)
    assert not weights.exists()


def test_others_wait_for_the_backbone(job, tmp_path, monkeypatch) -> None:
    began, go_on, order = threading.Event(), threading.Event(), []

    def slow(config, workdir, **_):
        began.set()
        order.append("train")
        assert go_on.wait(60)

    monkeypatch.setattr(execute, "train", slow)
    monkeypatch.setattr(execute, "newest_step", lambda workdir: len(order) and 10**6)
    first, second = (threading.Thread(target=partial(pretrained, job.config, tmp_path, again=False)) for _ in range(2))
    first.start()
    assert began.wait(60)
    second.start()
    second.join(0.3)
    assert second.is_alive()
    go_on.set()
    first.join(60)
    second.join(60)
    assert order == ["train"] and not second.is_alive()


def test_one_job_is_done_by_one_process(job, tmp_path) -> None:
    held = locked(tmp_path / "k_seed0.lock", "", option="")
    with held, pytest.raises(UserError, match="another process is at work on it"):
        work(job, tmp_path, again=False)


def test_seconds_follow_from_the_throughput(tmp_path) -> None:
    """Step 1 of 4 images took 4 s; steps 2 to 5 took 2 s; step 6 is logged alone, and taken to be as fast."""
    file = tmp_path / "metrics.jsonl"
    logged = ((1, 1.0), (5, 8.0), (6, 0.0))
    lines = [{"step": step, "train/loss": 1.0, "train/images_per_second": rate} for step, rate in logged]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, {"step": 6, "val/miou": 0.5}])
    file.write_text(text + '{"step": 7, "tra')
    assert training_seconds(records(file), 4) == 4.0 + 2.0 + 0.5
    assert state_of(records(file)) == (6, 1.0)
    assert records(tmp_path / "none") == []
    assert training_seconds([], 4) == 0.0 and state_of([]) == (0, None)


# Processes.


def test_a_job_ends_with_its_runner(tmp_path) -> None:
    code = "import time; from experiments.run.processes import end_with_parent as e; e(); time.sleep(60)"
    started = start_job(["python", "-c", code], tmp_path / "a.log")
    assert started.poll() is None
    started.stdin.close()
    assert started.wait(timeout=120) == 1


def test_a_job_that_ends_by_itself_tells_its_code(tmp_path) -> None:
    code = "from experiments.run.processes import end_with_parent as e; e(); print('said'); raise SystemExit(3)"
    started = start_job(["python", "-c", code], tmp_path / "a.log")
    assert started.wait(timeout=120) == 3 and (tmp_path / "a.log").read_text() == "said\n"
    started.stdin.close()


def test_jobs_at_once_share_the_cores(here, tmp_path, monkeypatch) -> None:
    """Of three jobs, the third gets the share of the second, which ends first."""
    codes = iter([None, 0, 0, 0])

    def start(command, log):
        found = here.start(command, log)
        return types.SimpleNamespace(poll=lambda: next(codes), terminate=found.terminate, wait=found.wait)

    monkeypatch.setattr(jobs, "start_job", start)
    assert call(tmp_path, "v3_table6", "v3_table10", "--parallel", "2") == 0
    assert [command[-2:] for command in here.commands] == [["--cores", f"{share}/2"] for share in (0, 1, 1)]


def test_a_job_that_would_wait_for_a_backbone_lets_others_go_first(tmp_path, monkeypatch) -> None:
    one, other = tiny_config(), tiny_config()
    other.model.output_stride = 8
    one.train.steps = other.train.steps = 9
    first, second = Job("a", 0, one, pretraining=one), Job("b", 0, one, pretraining=one)
    third, plain = Job("c", 0, other, pretraining=other), Job("d", 0, one)
    monkeypatch.setattr(execute, "newest_step", lambda workdir: 8)
    for waiting, running, expected in (
        ([first, second, third], [], first),
        ([second, third], [first], third),
        ([second, plain], [first], plain),
        ([second], [first, third], second),  # No job is left that can train at once.
    ):
        assert jobs.next_job(waiting, running, tmp_path) is expected
    monkeypatch.setattr(execute, "newest_step", lambda workdir: 9)
    assert jobs.next_job([second, third], [first], tmp_path) is second


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads are not kept to cores here")
def test_a_job_keeps_to_its_share_of_the_cores() -> None:
    cores = os.sched_getaffinity(0)

    def kept(share: str) -> set[int]:
        """In a thread of its own, which stands for the process: the call concerns the thread that makes it."""
        with ThreadPoolExecutor(1) as thread:
            thread.submit(keep_to_cores, share).result()
            return thread.submit(os.sched_getaffinity, 0).result()

    assert kept("") == cores
    several = kept("0/2"), kept("1/2")
    assert several[0] | several[1] == cores
    assert len(cores) == 1 or not several[0] & several[1]
    assert len(kept(f"{len(cores)}/{len(cores) + 1}")) == 1  # More jobs than cores.


# Slurm.


class FakeExecutor:
    """What submitit's is used for; a job is done at the second look."""

    count = itertools.count(7)

    made: list["FakeExecutor"] = []  # noqa: RUF012

    def __init__(self, folder, cluster):
        self.folder, self.cluster, self.parameters, self.names = folder, cluster, {}, []
        self.made.append(self)

    def update_parameters(self, **parameters):
        self.parameters.update(parameters)

    def submit(self, function):
        self.names.append(self.parameters["name"])
        looks = iter([False, True, True, True])
        return types.SimpleNamespace(
            job_id=str(next(self.count)),
            done=lambda: next(looks),
            exception=lambda: None,
            result=lambda: run.main(function._command[3:]),
        )


def fake_submitit(**more) -> types.SimpleNamespace:
    return types.SimpleNamespace(**{"AutoExecutor": FakeExecutor, "SlurmJob": None, **more})


def test_slurm_gets_all_jobs(here, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(FakeExecutor, "made", [])
    monkeypatch.setitem(sys.modules, "submitit", fake_submitit())
    words = ("--launcher", "slurm", "--slurm", "timeout_min=60", "--slurm", "slurm_partition=gpu")
    assert call(tmp_path, "v3_table1", "--row", "output_stride_8", "--row", "output_stride_16", *words) == 0
    (executor,) = FakeExecutor.made
    assert executor.cluster == "slurm" and len(executor.names) == 2
    assert executor.parameters["timeout_min"] == 60 and executor.parameters["slurm_partition"] == "gpu"
    assert result(tmp_path, "v3_table1/output_stride_8")["seeds"][0]["miou"] == 0.5


def test_ctrl_c_leaves_the_jobs_with_slurm(here, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(FakeExecutor, "made", [])
    monkeypatch.setitem(sys.modules, "submitit", fake_submitit())
    monkeypatch.setattr(SlurmJob, "poll", lambda self: interrupt())
    words = ("--row", "output_stride_8", "--row", "output_stride_16", "--launcher", "slurm")
    assert call(tmp_path, "v3_table1", *words) == 130
    assert "goes on from there. The submitted jobs stay with Slurm (scancel ends them)." in capsys.readouterr().err
    assert len(FakeExecutor.made[0].names) == 2, "both are submitted before the first look"


@pytest.mark.parametrize(
    ("done", "state", "age", "again"),
    [
        (False, "RUNNING", 0, False),
        (True, "FAILED", 0, True),
        (False, "UNKNOWN", 0, False),  # It has just come.
        (False, "UNKNOWN", 2 * FORGOTTEN, True),
    ],
)
def test_a_job_that_slurm_still_has_is_not_submitted_again(tmp_path, monkeypatch, done, state, age, again) -> None:
    asked = []

    def known(folder, job_id) -> types.SimpleNamespace:
        asked.append((folder, job_id))
        return types.SimpleNamespace(done=lambda force_check=False: done, state=state)

    monkeypatch.setattr(FakeExecutor, "made", [])
    monkeypatch.setitem(sys.modules, "submitit", fake_submitit(SlurmJob=known))
    for _ in range(2):  # Two runners, one after the other.
        Slurm(tmp_path, ()).start(["python", "-m", "experiments.run"], tmp_path / "job.log")
        then = time.time() - age
        os.utime(tmp_path / "job.id", (then, then))
    first, second = FakeExecutor.made
    assert first.names == ["job"] and second.names == ["job"] * again
    assert len(asked) == 1 and asked[0][0] == str(tmp_path) and asked[0][1].isdigit()


def test_a_job_on_slurm_saves_before_it_is_taken_away_and_asks_for_another_start(tmp_path, monkeypatch) -> None:
    """submitit's signal reaches the command too, which must outlive it until it is asked to save."""
    helpers = types.SimpleNamespace(DelayedSubmission=lambda function: ("again", function))
    monkeypatch.setitem(sys.modules, "submitit", types.SimpleNamespace(helpers=helpers))
    code = (
        "import os, signal, sys, time; os.kill(os.getpid(), signal.SIGUSR2); "
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); "
        f"open({str(tmp_path / 'up')!r}, 'w').close(); time.sleep(60)"
    )
    job, asked = OnNode(["python", "-c", code], tmp_path / "logs" / "job.log"), []
    before = signal.signal(signal.SIGUSR2, lambda *_: asked.append(job.checkpoint()))

    def take_away() -> None:
        while not (tmp_path / "up").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR2)

    threading.Thread(target=take_away).start()
    try:
        assert job() == 75
    finally:
        signal.signal(signal.SIGUSR2, before)
    ((again, function),) = asked
    assert again == "again" and function._command == job._command


def test_slurm_needs_submitit_and_what_it_refuses_is_a_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match="needs submitit: python -m pip install submitit"):
        Slurm(tmp_path, ())

    def refuse(**given) -> None:
        raise NameError("Unknown argument 'timeout_mim'")

    monkeypatch.setattr(FakeExecutor, "update_parameters", lambda self, **given: refuse())
    monkeypatch.setitem(sys.modules, "submitit", fake_submitit())
    with pytest.raises(UserError, match="--launcher slurm: Unknown argument 'timeout_mim'; see --slurm"):
        Slurm(tmp_path, ["timeout_mim=3"])
    with pytest.raises(UserError, match="--slurm timeout: give KEY=VALUE"):
        Slurm(tmp_path, ["timeout"])


# All of it.


def start(tmp_path, repo_root):
    words = [
        "v3_table6",
        "--seeds=1",
        "--row",
        "eval_os_16",
        "--row",
        "eval_os_8",
        "--steps",
        "40",
        "--runs",
        str(tmp_path / "runs"),
    ]
    words += ["--out", str(tmp_path / "out"), "--config.train.checkpoint_every=2", "--config.train.log_every=1", *THIN]
    command = [sys.executable, "-m", "experiments.run", *words]
    return subprocess.Popen(command, cwd=repo_root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_and_save(tmp_path, repo_root):
    """Start, and return the runner once its job has saved."""
    runner, deadline = start(tmp_path, repo_root), time.monotonic() + 400
    while not list((tmp_path / "runs").glob("scenes/*_seed0/checkpoints/2")):
        assert runner.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    return runner


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_table_survives_kill_9(tmp_path, repo_root) -> None:
    first = start_and_save(tmp_path, repo_root)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    second = start(tmp_path, repo_root)
    printed, complaints = second.communicate()
    assert second.returncode == 0, complaints + printed
    (log,) = (tmp_path / "runs/scenes").glob("*.log")
    assert "resuming from step" in log.read_text()
    found = result(tmp_path, "v3_table6/eval_os_8")
    assert found["protocol"]["output_stride"] == 8 and found["seeds"][0]["protocol"]["images"] == 256
    assert re.search(r"8 +78\.51 +\d", printed)
    third = start(tmp_path, repo_root)
    printed, _ = third.communicate()
    assert third.returncode == 0 and "running" not in printed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_runner_that_is_taken_away_has_its_jobs_save(tmp_path, repo_root) -> None:
    first = start_and_save(tmp_path, repo_root)
    first.terminate()
    _, complaints = first.communicate(timeout=60)
    assert first.returncode == 75 and "interrupted; the same command goes on from there. The running jobs" in complaints
    (log,) = (tmp_path / "runs/scenes").glob("*.log")
    assert "which is saved" in log.read_text()
