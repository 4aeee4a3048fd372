"""The command line: bad input is one sentence and an exit code, never a traceback."""

import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import REPO, change_params, copy_checkout, git, run
from equipoise import cli
from equipoise.cli import common, parser, program
from equipoise.cli.program import GROUPS


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkout")
    copy_checkout(folder)
    git(folder, "init", "-q")
    return folder


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["ingest", "--study", "dmo"], 2, "There is no study 'dmo'. Did you mean 'demo'?"),
        (
            ["embed", "--study", "demo", "--backbone", "vgg166"],
            2,
            "There is no backbone 'vgg166'. Did you mean 'vgg16'?",
        ),
        (
            ["scenario", "--study", "demo", "--backbone", "vgg16", "--scenario", "oversampling"],
            2,
            "There is no scenario 'oversampling'. Did you mean 'oversample'?",
        ),
        (
            [
                "scenario",
                "--study",
                "demo",
                "--backbone",
                "vgg16",
                "--scenario",
                "baseline",
                "--set",
                "tune.trial=3",
            ],
            2,
            "Did you mean 'tune.trials'?",
        ),
        (
            [
                "scenario",
                "--study",
                "demo",
                "--backbone",
                "vgg16",
                "--scenario",
                "baseline",
                "--set",
                "split.seed=3",
            ],
            2,
            "cannot be overridden for one scenario",
        ),
        (
            [
                "scenario",
                "--study",
                "demo",
                "--backbone",
                "vgg16",
                "--scenario",
                "baseline",
                "--trials",
                "0",
            ],
            2,
            "tune.trials is 0",
        ),
        (["ingest", "--study", "chest_xray"], 1, "data/raw/chest_xray"),
        (["split", "--study", "demo"], 1, "data/manifest/demo.parquet"),
        (["compare", "--study", "demo"], 1, "holds no predictions"),
        (["register", "--study", "demo"], 1, "reports/demo/comparison.json"),
        (["phantom", "--study", "chest_xray"], 2, "there is nothing to draw"),
        (["fetch", "breakhs"], 2, "There is no dataset 'breakhs'. Did you mean 'breakhis'?"),
        (["fetch", "medmnist"], 2, "names no archive to download"),
        (
            ["export", "--study", "demo", "--layout", "csv"],
            1,
            "data/manifest/demo.parquet",
        ),
        (
            ["leakage", "--study", "chest_xray", "--backbone", "vgg16"],
            1,
            "data/raw/chest_xray",
        ),
        (
            ["report", "--study", "demo", "--against", "HEAD"],
            1,
            "reports/demo/evidence.json",
        ),
    ],
)
def test_bad_input_is_a_sentence(checkout, monkeypatch, capsys, arguments, code, sentence):
    monkeypatch.chdir(checkout)
    assert cli.main(arguments) == code
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.err.count("\n") == 1


def unwrapped(text: str) -> str:
    """What a table says, without the breaks that the width of the screen asks for."""
    return " ".join(text.split())


def test_empty_phantom_section_has_nothing_to_draw(tmp_path, monkeypatch, capsys):
    copy_checkout(tmp_path)
    change_params(tmp_path, lambda params: params["studies"]["demo"].update(phantom={}))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["phantom", "--study", "demo"]) == 2
    assert "phantom section of study 'demo' is empty" in capsys.readouterr().err


def test_outside_a_checkout(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["doctor"]) == 2
    assert "No params.yaml" in capsys.readouterr().err


def test_damaged_params_name_the_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "params.yaml").write_text("run: {studies: [demo\n")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["ingest", "--study", "demo"]) == 2
    assert "line 2" in capsys.readouterr().err


def test_doctor_says_what_is_missing(checkout, monkeypatch, capsys):
    monkeypatch.chdir(checkout)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert cli.main(["doctor", "--json"]) == 0
    lines = {line["what"]: line for line in json.loads(capsys.readouterr().out)}
    assert lines["demo: raw images"] == {
        "level": "ok",
        "what": "demo: raw images",
        "detail": "will be drawn",
    }
    assert lines["extra keras"]["level"] == "ok"
    assert "tensorflow 2." in lines["extra keras"]["detail"]
    change_params(checkout, lambda params: params["run"].update(studies=["chest_xray"]))
    assert cli.main(["doctor"]) == 1
    out = unwrapped(capsys.readouterr().out)
    assert "data/raw/chest_xray is not there" in out
    assert "will be downloaded, or put " in out


def test_installed_program_and_module_are_the_same(tmp_path):
    for command in (
        ["equipoise"],
        [sys.executable, "-m", "equipoise"],
        [sys.executable, str(REPO / "src")],
    ):
        if command == ["equipoise"] and not shutil.which(
            "equipoise", path=str(Path(sys.executable).parent)
        ):
            pytest.skip("equipoise is not installed in this environment")
        done = run(tmp_path, *command, "--version", PYTHONPATH=str(REPO / "src"))
        first, *versions = done.stdout.splitlines()
        assert first == "equipoise 0.1.0"
        assert {"python", "tensorflow", "mlflow", "dvc"} <= {line.split()[0] for line in versions}


@pytest.fixture
def in_git(tmp_path):
    """params.yaml in a git checkout; DVC is never reached."""
    shutil.copy(REPO / "params.yaml", tmp_path)
    git(tmp_path, "init", "-q")
    return tmp_path


def unlist(section):
    return lambda params: params["studies"]["demo"].pop(section)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda params: params["run"].update(studies=[]), "run.studies in params.yaml is []"),
        (
            lambda params: params["run"].update(studies="demo"),
            "run.studies in params.yaml is 'demo'",
        ),
        (lambda params: params["run"].update(studies=["dema"]), "Did you mean 'demo'?"),
        (lambda params: params["run"].update(backbones=["vgg166"]), "Did you mean 'vgg16'?"),
        (lambda params: params["run"].update(scenarios=["focall"]), "Did you mean 'focal'?"),
        (
            lambda params: params["run"].update(scenarios=None),
            "run.scenarios in params.yaml is None",
        ),
        (lambda params: params["scenarios"].pop("augment"), "Write `augment: {}`"),
        (unlist("tune"), "Write `tune: {}` under studies.demo"),
    ],
)
@pytest.mark.parametrize("verb", ["main", "doctor"])
def test_what_is_wrong_with_run_is_said_before_dvc_speaks(in_git, capsys, change, said, verb):
    change_params(in_git, change)
    code = cli.main(["--root", str(in_git), verb])
    told = capsys.readouterr()
    if verb == "main":
        assert (code, told.out, told.err.count("\n")) == (2, "", 1)
        assert told.err.startswith("ConfigError: ")
        assert said in told.err
    else:
        assert code == 1
        assert said in unwrapped(told.out)


@pytest.mark.parametrize("verb", ["main", "doctor"])
def test_a_folder_that_came_as_a_zip_is_told_how_to_become_a_checkout(tmp_path, capsys, verb):
    shutil.copy(REPO / "params.yaml", tmp_path)
    assert cli.main(["--root", str(tmp_path), verb]) in (1, 2)
    told = unwrapped("".join(capsys.readouterr()))
    for command in ("git init", "git add -A", "git commit -m start"):
        assert command in told


def test_a_stage_names_the_section_that_its_study_leaves_out(in_git, capsys):
    change_params(in_git, unlist("split"))
    assert cli.main(["--root", str(in_git), "split", "--study", "demo"]) == 2
    assert "Write `split: {}` under studies.demo" in capsys.readouterr().err


# --- words that are misspelt, help, completion -----------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["compar"], "There is no verb 'compar'. Did you mean 'compare'?"),
        (["split", "--studdy", "demo"], "There is no option '--studdy' of `equipoise split`."),
        (["split", "--studdy", "demo"], "Did you mean '--study'?"),
        (["--rot", ".", "doctor"], "There is no option '--rot' of `equipoise`."),
        (["export", "--study", "demo", "--layout", "foldrs"], "Did you mean 'folders'?"),
        (["audit", "verfy"], "There is no action 'verfy'. Did you mean 'verify'?"),
        (["split"], "The following arguments are required: --study. `equipoise split --help`"),
        (["split", "--study", "demo", "more"], "Unrecognized arguments: more."),
    ],
)
def test_a_word_that_does_not_exist_is_answered_by_the_nearest_one(capsys, arguments, sentence):
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)


def test_options_may_be_shortened_and_values_may_look_like_options(checkout, monkeypatch, capsys):
    monkeypatch.chdir(checkout)
    assert cli.main(["ingest", "--stu", "dmo"]) == 2
    assert "There is no study 'dmo'" in capsys.readouterr().err
    parser.refuse_unknown_options(
        parser.build(GROUPS), ["predict", "--model", "m", "--", "--a-file.png"]
    )


def test_a_program_that_ends_searches_nothing_for_cycles(checkout):
    # What was registered first is called last.
    code = (
        "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count())); "
        "from equipoise import cli; cli.main([])"
    )
    done = run(checkout, sys.executable, "-c", code, PYTHONPATH=str(REPO / "src"))
    assert int(done.stdout.splitlines()[-1]) > 10_000


def test_without_a_verb_the_help_is_shown(capsys):
    assert cli.main([]) == 2
    told = capsys.readouterr()
    assert told.err == ""
    assert all(f"  {verb} " in told.out for verb in cli.VERBS)


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("verb", [None, *cli.VERBS])
def test_help_fits_and_shows_an_example(monkeypatch, capsys, verb, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"] if verb else ["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    if verb:
        assert f"example:\n  equipoise {verb}" in text


@pytest.mark.parametrize("verb", cli.VERBS)
def test_the_example_of_the_help_is_one(verb):
    """Its words are parsed, and only its files may be missing."""
    words = shlex.split(cli.VERBS[verb].example)
    assert words[:2] == ["equipoise", verb]
    program = parser.build(GROUPS)
    parser.refuse_unknown_options(program, words[1:])
    assert program.parse_args(words[1:]).verb == verb


def test_help_names_the_studies_of_this_project(in_git, monkeypatch, capsys):
    monkeypatch.chdir(in_git)
    change_params(in_git, lambda params: params["studies"].update(mine=params["studies"]["demo"]))
    with pytest.raises(SystemExit):
        cli.main(["scenario", "--help"])
    text = capsys.readouterr().out
    assert "studies: demo, chest_xray, breakhis, mine" in text
    assert "vgg16" in text.partition("backbones: ")[2]
    (in_git / "params.yaml").write_text("run: {studies: [demo")
    with pytest.raises(SystemExit) as ended:
        cli.main(["scenario", "--help"])
    assert ended.value.code == 0
    assert "names in this project" not in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not there")
def test_bash_completes_verbs_options_and_names(checkout, monkeypatch, capsys):
    monkeypatch.chdir(checkout)
    with pytest.raises(SystemExit):
        cli.main(["--print-completion", "bash"])
    script = checkout / "completion.sh"
    script.write_text(capsys.readouterr().out)

    def completed(*words):
        line = " ".join(f"'{word}'" for word in words)
        commands = (
            f"source {shlex.quote(str(script))}; complete -p equipoise > asked; COMP_WORDS=({line}); "
            f"COMP_CWORD={len(words) - 1}; $(sed 's/.*-F *\\([^ ]*\\).*/\\1/' asked); "
            'printf "%s\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            ["bash", "-c", commands], cwd=checkout, capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    assert completed("equipoise", "pro") == ["promote"]
    assert "--study" in completed("equipoise", "scenario", "--st")
    assert completed("equipoise", "scenario", "--study", "de") == ["demo"]


# --- how loud ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["a warning", "1/2 steps"]),
        (["-v"], ["a step", "a warning", "1/2 steps"]),
        (["-vv"], ["a detail", "a step", "a warning", "1/2 steps"]),
        (["-q"], []),
    ],
)
@pytest.mark.parametrize("before", [True, False])
def test_loudness(checkout, monkeypatch, capsys, words, expected, before):
    def speaks(options):
        log = logging.getLogger("equipoise.some.room")
        log.debug("a detail")
        log.info("a step")
        log.warning("a warning")
        logging.getLogger("equipoise.progress").info("1/2 steps")

    monkeypatch.chdir(checkout)
    monkeypatch.setitem(program.VERBS, "doctor", replace(cli.VERBS["doctor"], run=speaks))
    assert cli.main([*words, "doctor"] if before else ["doctor", *words]) == 0
    told = capsys.readouterr()
    assert (told.out, told.err.splitlines()) == ("", expected)
    assert logging.getLogger("equipoise").handlers == []


@pytest.mark.parametrize("words", [[], ["-q"]])
def test_quiet_keeps_back_what_other_packages_say_in_every_process(tmp_path, words):
    (tmp_path / "speaking.py").write_text(
        "import logging, warnings\n"
        "def speak(where):\n"
        "    logging.getLogger('somebody.elses').warning(f'logged {where}')\n"
        "    warnings.warn(f'warned {where}')\n"
    )
    code = (
        "import dataclasses, sys\n"
        "import speaking\n"
        "from equipoise.cli import program\n"
        "from equipoise.core import config, parallel\n"
        "def works(options):\n"
        "    speaking.speak('here')\n"
        "    parallel.run_jobs(speaking.speak, [('there',), ('too',)], '', config.Engine(workers=2))\n"
        "program.VERBS['doctor'] = dataclasses.replace(program.VERBS['doctor'], run=works)\n"
        "assert program.main(sys.argv[1:]) == 0\n"
        "speaking.speak('afterwards')\n"
    )
    command = [sys.executable, "-c", code, "--root", str(REPO), "doctor", *words]
    path = f"{REPO / 'src'}{os.pathsep}{tmp_path}"
    told = run(tmp_path, *command, PYTHONPATH=path).stderr
    said = set(re.findall(r"(?:logged|warned) \w+", told))
    expected = {"logged afterwards", "warned afterwards"}
    if not words:
        expected |= {
            f"{how} {where}" for how in ("logged", "warned") for where in ("here", "there", "too")
        }
    assert said == expected


@pytest.mark.parametrize("words", [[], ["-q"]])
def test_the_stages_that_main_starts_are_as_quiet_as_it_is(tmp_path, capfd, words):
    copy_checkout(tmp_path)
    git(tmp_path, "init", "-q")
    (tmp_path / "data/raw/dvc.yaml").unlink()
    (tmp_path / "dvc.yaml").write_text("stages: {one: {cmd: python stage.py}}")
    (tmp_path / "stage.py").write_text(
        "import dataclasses, logging\n"
        "from equipoise.cli import program\n"
        "speaks = lambda options: logging.getLogger('equipoise.progress').info('1/2 steps')\n"
        "program.VERBS['doctor'] = dataclasses.replace(program.VERBS['doctor'], run=speaks)\n"
        "assert program.main(['doctor']) == 0\n"
    )
    cli.main(["--root", str(tmp_path), "main", *words])
    told = capfd.readouterr()
    assert "python stage.py" in told.out
    assert ("1/2 steps" in told.err) == (not words)


def test_nothing_in_the_source_speaks_round_the_logger():
    """But the program itself: what was asked for on stdout, one sentence of an error on stderr."""
    speaking = re.compile(r"^\s*(print\(|sys\.std(err|out)\.write|tqdm\()", flags=re.M)
    speakers = set()
    for path in (REPO / "src/equipoise").rglob("*.py"):
        if speaking.search(path.read_text()):
            speakers.add(path.relative_to(REPO / "src/equipoise").as_posix())
    # `formats.py` holds the program of a process whose answer is read.
    assert speakers == {"cli/common.py", "cli/parser.py", "cli/program.py", "embed/formats.py"}


def test_quiet_and_verbose_exclude_each_other(capsys):
    assert cli.main(["doctor", "-q", "-v"]) == 2
    assert "not allowed with" in capsys.readouterr().err


def test_a_log_that_holds_no_unicode_ends_no_verb(tmp_path):
    code = "from equipoise.cli import common; from equipoise.cli.program import main; main([]); common.say('a … b')"
    done = run(
        tmp_path,
        sys.executable,
        "-c",
        code,
        PYTHONPATH=str(REPO / "src"),
        PYTHONIOENCODING="ascii",
    )
    assert done.stdout.splitlines()[-1] == "a \\u2026 b"


def test_a_long_line_is_broken_between_words_on_a_terminal_alone(monkeypatch, capsys):
    line = "        " + "a word " * 20 + "/a/path/" + "that/stays/whole/" * 8
    common.say(line)
    assert capsys.readouterr().out == line + "\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    common.say(line)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 3
    assert all(part.startswith("        ") and len(part) <= 60 for part in lines[:-1])
    assert " ".join(lines).split() == line.split()
    common.say_json(line)
    assert capsys.readouterr().out == line + "\n"
