"""The launchers: what they run is what the command line takes, and a failure of one process is the failure of all."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from deeplab_jax.config import split_config_arguments
from deeplab_jax.distributed import explicit
from deeplab_jax.flags import make_parser
from experiments.launch import local
from tests.support.processes import environment

FOLDER = "experiments/launch"


def check_words(words):
    """Parse the words of a command as the command line would; nothing may be left over."""
    args, rest = make_parser().parse_known_args(words)
    config, unknown = split_config_arguments(rest)
    assert not unknown and any(word.startswith("--config=configs/") for word in config)
    return args


@pytest.mark.parametrize("script", ["slurm.sbatch", "tpu_pod.sh"])
def test_scripts_are_bash_and_run_what_the_command_line_takes(repo_root, script) -> None:
    file = repo_root / FOLDER / script
    assert subprocess.run(["bash", "-n", file], check=False).returncode == 0
    text = file.read_text()
    (flags,) = re.findall(r"deeplab_jax (train --distributed \S+) ", text)
    usage = next(line for line in text.splitlines() if line.startswith("#") and "--config configs/" in line)
    words = shlex.split(flags) + shlex.split(usage[usage.index("--config") :])
    assert check_words(words).distributed == "auto"


def write_program(file, body):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/bash\n{body}\n")
    file.chmod(0o755)


# Runs a task for each of the codes, which the tasks end with, at once; ends, like Slurm's, with the highest.
SRUN = """
echo "$@" > srun.words
while [[ $1 == --* ]]; do shift; done
tasks=()
for code in $CODES; do CODE=$code "$@" & tasks+=($!); done
[[ -z ${SIGNAL:-} ]] || { until [[ -e ready ]]; do sleep 0.1; done; pkill -TERM -P "$tasks"; kill -TERM "$tasks"; }
highest=0
for task in "${tasks[@]}"; do wait "$task"; code=$?; ((code > highest)) && highest=$code; done
exit $highest
"""


@pytest.mark.parametrize(
    ("codes", "code", "requeued"),
    [
        ("0 0", 0, False),
        ("2 2", 2, False),
        ("75 75", 75, True),
        ("134 137", 137, True),
        ("143 75", 143, True),
        ("75 139", 139, True),
        ("137 2 75", 2, False),
        ("134 134 1", 1, False),
    ],
)
@pytest.mark.parametrize("restarts", [0, 30])
def test_the_sbatch_script_requeues_what_can_go_on(repo_root, tmp_path, codes, code, requeued, restarts) -> None:
    write_program(tmp_path / "bin" / "srun", SRUN)
    write_program(tmp_path / "bin" / "scontrol", f"echo $@ > {tmp_path}/asked")
    write_program(tmp_path / ".venv-cuda" / "bin" / "python", "exit $CODE")
    environment = {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "8",
        "SLURM_RESTART_COUNT": str(restarts),
        "CODES": codes,
    }
    done = subprocess.run(["bash", repo_root / FOLDER / "slurm.sbatch"], env=environment, check=False)
    assert done.returncode == code
    assert (tmp_path / "asked").exists() == (requeued and restarts < 30)
    assert "--cpus-per-task=8" in (tmp_path / "srun.words").read_text()


def test_the_shell_around_a_task_of_slurm_leaves_it_time_to_save(repo_root, tmp_path) -> None:
    write_program(tmp_path / "bin" / "srun", SRUN)
    write_program(tmp_path / "bin" / "scontrol", f"echo $@ > {tmp_path}/asked")
    program = (
        "import signal, sys, time; signal.signal(15, lambda *_: (time.sleep(1), sys.exit(75))); "
        'open("ready", "w").close(); time.sleep(30)'
    )
    write_program(tmp_path / ".venv-cuda" / "bin" / "python", f"exec {sys.executable} -c '{program}'")
    environment = {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "7",
        "CODES": "0",
        "SIGNAL": "yes",
    }
    assert subprocess.run(["bash", repo_root / FOLDER / "slurm.sbatch"], env=environment, check=False).returncode == 75
    assert (tmp_path / "asked").exists()


# A TPU whose state is a file; each training takes the next of $CODES, "gone" for a preemption in the middle of it.
GCLOUD = """
verb=$4
echo "$verb" >> verbs
case $verb in
    describe) cat state 2> nothing ;;
    delete) rm state ;;
    create) [[ "$*" == *--spot* ]] && echo READY > state ;;
    ssh)
        [[ "$*" == *train* ]] || exit 0
        read -r code rest < codes
        echo "$rest" > codes
        [[ $code == gone ]] && echo PREEMPTED > state && exit 1
        exit "$code" ;;
esac
"""


@pytest.mark.parametrize(
    ("state", "codes", "code", "verbs"),
    [
        ("READY", "0", 0, "describe ssh"),
        ("READY", "2", 2, "describe ssh describe"),
        ("READY", "75 255 0", 0, "describe ssh describe ssh describe ssh"),
        ("READY", "143 139 137 0", 137, "describe ssh describe ssh describe ssh"),
        ("READY", "gone 0", 0, "describe ssh describe describe delete create ssh ssh"),
        ("PREEMPTED", "0", 0, "describe delete create ssh ssh"),
        ("", "0", 0, "describe create ssh ssh"),
    ],
)
def test_the_script_of_tpus_brings_them_back_and_ends(repo_root, tmp_path, state, codes, code, verbs) -> None:
    write_program(tmp_path / "gcloud", GCLOUD)
    (tmp_path / "codes").write_text(codes + "\n")
    if state:
        (tmp_path / "state").write_text(state + "\n")
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "MAX_STARTS": "3", "PAUSE": "0"}
    more = {"TPU_CREATE": "--version=v --spot", "TPU_SETUP": "true"}
    command = ["bash", repo_root / FOLDER / "tpu_pod.sh", "name", "zone", "--config", "c.py"]
    done = subprocess.run(command, cwd=tmp_path, env={**environment, **more}, check=False)
    assert (done.returncode, (tmp_path / "verbs").read_text().split()) == (code, verbs.split())
    if "create" in verbs:  # Which nobody has said how to.
        (tmp_path / "state").write_text("PREEMPTED")
        assert subprocess.run(command, cwd=tmp_path, env=environment, check=False).returncode == 75


def test_the_manifest_gives_every_pod_its_place(repo_root) -> None:
    service, job = yaml.safe_load_all((repo_root / FOLDER / "gke.yaml").read_text())
    spec = job["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    command = container["command"][-1].replace("$JOB_COMPLETION_INDEX", "1")
    words = shlex.split(command)
    args = check_words(words[words.index("train") :])
    place = explicit(args.distributed)
    assert place["num_processes"] == spec["completions"] == spec["parallelism"] and place["process_id"] == 1
    # Pod 0 of an indexed Job is called so within its service.
    name = job["metadata"]["name"]
    assert place["coordinator_address"].split(":")[0] == f"{name}-0.{spec['template']['spec']['subdomain']}"
    assert service["metadata"]["name"] == spec["template"]["spec"]["subdomain"]
    assert service["spec"]["selector"] == {"job-name": name} and spec["completionMode"] == "Indexed"
    (exits,) = [rule["onExitCodes"] for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert spec["backoffLimitPerIndex"] and spec["maxFailedIndexes"] == 0 and spec["activeDeadlineSeconds"]
    assert exits["containerName"] == container["name"] and 75 not in exits["values"] and 2 in exits["values"]


def test_every_process_gets_its_place() -> None:
    words = local.command(["train"], address="127.0.0.1:5", processes=3, index=2)
    assert words[2:] == ["-m", "deeplab_jax", "train", "--distributed", "127.0.0.1:5,3,2"]
    assert "--distributed" not in local.command(["train"], address="127.0.0.1:5", processes=1, index=0)


@pytest.fixture
def run_script(monkeypatch, tmp_path):
    """Run a Python script as the processes, with the index in `sys.argv[1]` and how often it ran in `start`."""

    def run(script, **options):
        file = tmp_path / "script.py"
        file.write_text(
            "import os, pathlib, signal, sys, time\n"
            "index = sys.argv[1]\n"
            f"count = pathlib.Path({str(tmp_path)!r}, 'count' + index)\n"
            "start = len(count.read_text()) if count.exists() else 0\n"
            "count.write_text('x' * (start + 1))\n" + script
        )
        monkeypatch.setattr(
            local, "command", lambda words, *, address, processes, index: [sys.executable, str(file), str(index)]
        )
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            return local.run([], **{"processes": 2, "devices": 0, "restarts": 0, **options})
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    return run


def test_output_has_the_number_of_its_process(run_script, capfd) -> None:
    assert run_script("print('hello')\nprint('oh', file=sys.stderr)") == 0
    output, errors = capfd.readouterr()
    assert sorted(output.splitlines()) == ["[0] hello", "[1] hello"]
    assert sorted(errors.splitlines()) == ["[0] oh", "[1] oh"]


def test_one_failure_ends_all_with_its_code(run_script, monkeypatch) -> None:
    monkeypatch.setattr(local, "GRACE", 0.5)
    assert run_script("sys.exit(2) if index == '1' else time.sleep(3600)") == 2  # Within the test's own time limit.


@pytest.mark.parametrize(("restarts", "code"), [(0, 75), (1, 75), (2, 3)])
def test_starts_again_after_a_loss_and_not_after_a_failure(run_script, restarts, code) -> None:
    script = "os.kill(os.getpid(), signal.SIGKILL) if start == 0 else sys.exit(75 if start == 1 else 3)"
    assert run_script(script, processes=1, restarts=restarts) == code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_between_two_starts_ends_the_launcher(run_script, monkeypatch, tmp_path, number, code) -> None:
    # The launcher prints between two starts only.
    monkeypatch.setattr(local, "print", lambda *_, **__: signal.raise_signal(number), raising=False)
    assert run_script("sys.exit(75)", processes=1, restarts=2) == code
    assert (tmp_path / "count0").read_text() == "x"


def test_a_signal_while_processes_are_started_reaches_all(run_script, monkeypatch) -> None:
    script = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); print('ready', flush=True); time.sleep(100)"
    pass_on, ready = local.pass_on, []

    def passing(source, target, prefix):
        if target is sys.stdout:
            ready.append(source.readline())
            if len(ready) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
        pass_on(source, target, prefix)

    monkeypatch.setattr(local, "pass_on", passing)
    assert run_script(script) == 5


def test_each_process_can_have_a_gpu_of_its_own(monkeypatch, capfd) -> None:
    program = "import os; print('has', os.environ.get('JAX_LOCAL_DEVICE_IDS'))"
    monkeypatch.setattr(local, "command", lambda words, **_: [sys.executable, "-c", program])
    for flags, ids in ((["--gpus"], ["0", "1"]), ([], ["None", "None"])):
        assert local.main(["--processes", "2", *flags, "--", "train"]) == 0
        assert sorted(capfd.readouterr().out.splitlines()) == [f"[{k}] has {ids[k]}" for k in (0, 1)]


@pytest.mark.skipif(not local.TETHER, reason="needs setpriv")
def test_a_killed_launcher_leaves_nothing_behind(tmp_path) -> None:
    child = "import signal, time; print('ready', flush=True); time.sleep(100)"
    launcher = (
        "import sys; from experiments.launch import local; "
        f"local.command = lambda *_, **__: [sys.executable, '-c', {child!r}]; local.run([], processes=1, devices=0, "
        "restarts=0)"
    )
    with subprocess.Popen([sys.executable, "-c", launcher], stdout=subprocess.PIPE, env=environment({})) as process:
        assert process.stdout is not None and process.stdout.readline() == b"[0] ready\n"
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
        process.kill()
    deadline = time.monotonic() + 20
    while any(alive(int(pid)) for pid in children.split()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert children.split() and not any(alive(int(pid)) for pid in children.split())


def alive(pid):
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--processes", "0", "--", "train"], "--processes has to be at least 1"),
        (["--restarts", "-1", "--", "train"], "--devices and --restarts at least 0"),
        (["--proceses", "2", "--", "train"], "unrecognized arguments: --proceses"),
        (["--processes", "two", "--", "train"], "argument --processes: invalid int value: 'two'"),
        ([], "the following arguments are required: -- VERB ..."),
    ],
)
def test_flags_that_make_no_sense_are_refused_in_one_line(words, message, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        local.parse(words)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and line.endswith("see python -m experiments.launch.local --help")


def test_flags_of_the_verb_stay_its_own() -> None:
    args = local.parse(["--processes", "3", "--", "train", "--config", "c.py", "--devices"])
    assert args.processes == 3 and args.words == ["train", "--config", "c.py", "--devices"]
