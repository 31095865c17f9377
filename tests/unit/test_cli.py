"""The command line: mistakes are one line and exit code 2, nothing runs; every knob is a flag."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpml import cli, env
from hpml.env import HpmlError
from hpml.knobs import KNOBS

TINY = str(Path(__file__).parent.parent / "tiny.py")


def hpml(*words: str, **settings: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", "from hpml.cli import main; main()", *words], capture_output=True, text=True,
                          env={**os.environ, **settings})


@pytest.mark.parametrize(("words", "said"), [
    (["run", "--tier", "huge"], "unknown tier 'huge'"), (["run", "--workloads", "resnet50,vgg"], "unknown workload 'vgg'"),
    (["run", "--only", "10,98"], "no notebook 98"), (["run", "--budget", "soon"], "budget 'soon'"),
    (["run", "--rounds", "0"], "at least 1"), (["run", "--data", "mnist"], "data 'mnist'"), (["run", "--device", "tpu"], "device 'tpu'"),
    (["run", "--run-id", "a/b"], "run id 'a/b'"),
    (["run", "--resume", "--run-id", "never"], "nothing to resume"), (["train", "resnet51"], "unknown workload"),
    (["train", "resnet50", "--precision", "fp8"], "precision"), (["train", "resnet50", "--wrokers", "2"], "No such option"),
    (["train", "resnet50", "--batch", "0"], "batch=0"), (["train", TINY, "--epochs", "0"], "at least one epoch"),
    (["train", "resnet50", "--data-parallel", "--distributed"], "exclude each other"), (["report", "never"], "no run 'never'"),
    (["data", "fetch", "mnist"], "mnist"), (["notebooks", "--store", "98"], "no notebook 98"), (["bogus"], "No such command"),
    (["check", "nowhere.py"], "no such workload file: nowhere.py"), (["check", "resnet51"], "unknown workload"),
])
def test_a_mistake_is_one_line_and_exit_code_2(words, said, tmp_path):
    done = hpml(*words, HPML_RESULTS=str(tmp_path / "results"))
    assert done.returncode == 2, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists(), "nothing was run or written"
    own = [line for line in done.stderr.splitlines() if line.startswith("hpml:")]
    assert len(own) <= 1


def test_cuda_without_a_gpu_is_refused():
    if not env.no_gpu():
        pytest.skip("this machine has a GPU")
    done = hpml("train", TINY, "--device", "cuda")
    assert done.returncode == 2 and "no NVIDIA GPU" in done.stderr


def test_every_training_knob_is_a_flag():
    text = hpml("train", "--help", COLUMNS="200").stdout
    for name, knob in KNOBS.items():
        assert ("--" + name.replace("_", "-") in text) == ("train" in knob.phases), name
    for flag in ("--num-workers", "--torch-script", "--data-parallel", "--dry-run", "--gradient-accumulation"):
        assert flag in text


def test_a_dry_run_says_what_it_would_do_and_does_nothing(tmp_path):
    done = hpml("train", "resnet50", "--num-workers", "8", "--pin-memory", "--torch-script", "--data-parallel", "--precision", "bf16",
                "--dry-run", HPML_RESULTS=str(tmp_path / "results"))
    assert done.returncode == 0
    for line in ('"workers": 8', '"pin_memory": true', '"script": "torchscript"', '"parallel": "dp"', '"precision": "bf16"'):
        assert line in done.stdout
    assert "handwritten digits (embedded)" in done.stdout and "nothing was run" in done.stdout
    assert not (tmp_path / "results").exists()


def test_training_prints_epochs_and_leaves_weights(tmp_path):
    done = hpml("train", TINY, "--epochs", "2", "--precision", "bf16", "--run-id", "mine", HPML_RESULTS=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "epoch 2 of 2: loss" in done.stdout and "accuracy" in done.stdout.splitlines()[-1]
    assert len(list((tmp_path / "runs" / "mine" / "models").glob("*.safetensors"))) == 1


def test_an_interrupted_training_says_how_to_go_on_and_shows_no_traceback(tmp_path):
    """Ctrl-C at once, while the server of children still imports, and later, among its steps: it goes to the whole process group."""
    for wait in (False, True):
        training = subprocess.Popen([sys.executable, "-c", "from hpml.cli import main; main()", "train", TINY, "--epochs", "100000",
                                     "--run-id", "mine"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                                    env={**os.environ, "HPML_RESULTS": str(tmp_path)},
                                    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        if wait:
            assert "epoch 1 of" in training.stdout.readline()
        else:
            while not list(tmp_path.glob("runs/mine/logs")):
                time.sleep(0.05)
        os.killpg(training.pid, signal.SIGINT)
        _, said = training.communicate(timeout=300)
        assert training.returncode != 0 and "--run-id mine goes on" in said and "Traceback" not in said, said


def test_ctrl_c_while_the_server_of_children_begins_shows_no_traceback(tmp_path):
    """Its interpreter is interrupted before it has read a line of ours; whoever started it is not."""
    (tmp_path / "sitecustomize.py").write_text("import os, signal, sys\nif 'forkserver' in sys.orig_argv[-1]:\n"
                                               f"    open({str(tmp_path / 'interrupted')!r}, 'w').close()\n"
                                               "    os.kill(os.getpid(), signal.SIGINT)\n")
    done = hpml("train", TINY, "--epochs", "1", "--workers", "1", "--run-id", "mine", HPML_RESULTS=str(tmp_path),
                PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    assert (tmp_path / "interrupted").exists() and done.returncode == 0 and not done.stderr, done.stderr


def test_a_training_that_cannot_run_says_why(tmp_path):
    done = hpml("train", TINY, "--precision", "fp16", HPML_RESULTS=str(tmp_path))
    assert done.returncode == 2 and "FP16 training on a CPU" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("options", "said"), [
    (("--precision", "int8"), "int8"), (("--lr", "nan"), "lr=nan: must be a finite number"),
    (("--ranks", "2"), "only parallel='ddp' takes more than one process"), (("--batch", "7", "--accum-steps", "3"), "cannot be split")])
def test_a_dry_run_refuses_what_no_training_can_do(options, said):
    done = hpml("train", TINY, *options, "--dry-run")
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_a_readers_file_is_accepted_or_told_what_is_wrong_without_a_traceback(tmp_path):
    done = hpml("check", TINY, "--no-export")
    assert done.returncode == 0 and "nothing is missing or wrong" in done.stdout and not done.stderr
    path = tmp_path / "mine.py"
    path.write_text(Path(TINY).read_text().replace("batch[1]", "batch[2]"))
    done = hpml("check", str(path), "--no-export")
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert "IndexError: list index out of range (mine.py, line" in done.stdout and "1 line to mend" in done.stdout


def test_a_folder_that_is_a_file_and_a_full_disk_are_one_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    done = hpml("train", TINY, HPML_RESULTS=str(tmp_path / "file"))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and str(tmp_path / "file") in done.stderr, done.stderr
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", "from hpml.cli import main; main()", "notebooks"], stdout=full, stderr=subprocess.PIPE,
                              text=True)
    assert done.returncode == 2 and done.stderr == "hpml: the output: No space left on device\n"


def test_a_damaged_status_is_named(tmp_path):
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    for text in ('{"x":', "[]", "{}", '{"notebooks": [], "asked": 3}'):
        (folder / "status.json").write_text(text)
        done = hpml("run", "--only", "00", "--tier", "smoke", "--resume", "--run-id", "mine", HPML_RESULTS=str(tmp_path))
        assert done.returncode == 2 and "status.json: damaged" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("text", "wanted"), [("45m", 2700), ("2h", 7200), ("90s", 90), ("10", 600), ("none", None)])
def test_budgets(text, wanted):
    assert cli.seconds(text) == wanted


@pytest.mark.parametrize("text", ["", "m", "-5m", "0", "1d"])
def test_wrong_budgets(text):
    with pytest.raises(HpmlError, match="budget"):
        cli.seconds(text)


def test_the_environment_is_printed_without_touching_a_gpu():
    done = hpml("env")
    assert done.returncode == 0 and '"isa"' in done.stdout and '"openvino"' in done.stdout


@pytest.mark.parametrize(("words", "said"), [
    (["--gallery", "/nonexistent"], "only --workload clip"), (["--workload", "clip", "--gallery", "/nonexistent"], "no such folder"),
    (["--image", "0"], "image=0: must be at least 8"), (["--workload", "xlnet", "--image", "0"], "image=0"),
    (["--threads", "100000"], "threads=100000: at most 1024"), (["--streams", "100000"], "streams=100000: at most 1024"),
    (["--decoders", "1025"], "decoders=1025: at most 1024"), (["--max-body-mb", "300"], "max_bodies_mb=200"),
    (["--device", "tpu"], "device 'tpu'")])
def test_what_cannot_be_served_is_refused_before_any_work(words, said, tmp_path):
    done = hpml("serve", "--port", "0", *words, HPML_RESULTS=str(tmp_path / "results"))
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1 and not done.stdout, done.stderr
    assert not (tmp_path / "results").exists(), "nothing was run or written"


def test_cuda_without_a_gpu_is_not_served_by_flag_or_file(tmp_path):
    if not env.no_gpu():
        pytest.skip("this machine has a GPU")
    file = tmp_path / "recommended.yaml"
    file.write_text("{format: 1, machine: m, machines: {m: {workloads: {resnet50: {infer: {knobs: {device: cuda}}}}}}}")
    for words in (["--device", "cuda"], ["--config", str(file)]):
        done = hpml("serve", "--port", "0", *words)
        assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("hpml: device 'cuda': no NVIDIA GPU"), done.stderr
