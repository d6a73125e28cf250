"""The lessons of the course: what each promises at its top, its exercises with their solutions, and its quiz."""

import re
from pathlib import Path

import nbformat
import pytest

from ssl_nb.teaching import check, reading_minutes
from ssl_nb.teaching.exercises import exercises

LESSONS = sorted(Path(__file__).parent.parent.joinpath("nbs", "course").glob("[0-9][0-9]_*.ipynb"))
IDS = [path.stem for path in LESSONS]


def cells(path, kind):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def text(path):
    return "\n\n".join(cell.source for cell in cells(path, "markdown"))


def names(path):
    "What the import lines of a lesson define."
    found = {}
    for cell in cells(path, "code"):
        for line in cell.source.splitlines():
            if re.match(r"(import|from) ", line):
                exec(line, found)
    return found


@pytest.mark.parametrize("path", LESSONS, ids=IDS)
def test_the_top_says_what_a_lesson_is(path):
    top = cells(path, "markdown")[0].source
    assert re.match(rf"# {int(path.name[:2])} · \w", top)
    assert all(word in top for word in ("> **Question.**", "**You need**", "**Afterwards you can**"))
    said = int(re.search(r"\*\*Reading time\*\*: (\d+) minutes", top)[1])
    minutes = reading_minutes(path)
    assert said == round(minutes), f"reading {path.name} takes {minutes:.1f} minutes"
    assert 15 <= minutes <= 25


@pytest.mark.parametrize("path", LESSONS, ids=IDS)
def test_a_lesson_shows_neither_library_source_nor_plumbing(path):
    for cell in cells(path, "code"):
        assert "#| export" not in cell.source and "parameters" not in cell.metadata.get("tags", [])


@pytest.mark.parametrize("path", LESSONS, ids=IDS)
def test_a_lesson_ends_with_a_summary_exercises_and_a_quiz(path):
    parts = re.split(r"^## ", text(path), flags=re.MULTILINE)
    assert [part.splitlines()[0] for part in parts[-3:]] == ["Summary", "Exercises", "Quiz"]
    summary, _, quiz = parts[-3:]
    assert summary.count("\n- ") == 3
    assert len(re.findall(r"^\d\. ", quiz, re.MULTILINE)) == quiz.count("<details><summary>Answer</summary>") == 5


@pytest.mark.parametrize("path", LESSONS, ids=IDS)
def test_a_prediction_comes_before_its_outcome(path):
    code = "\n".join(cell.source for cell in cells(path, "code"))
    asked = re.findall(r"^(\w+) = Predict\(", code, re.MULTILINE)
    assert asked
    for name in asked:
        assert code.index(f"{name} = Predict(") < code.index(f"reveal({name}")


@pytest.mark.parametrize("path", LESSONS, ids=IDS)
def test_the_empty_answers_fail_and_the_solutions_pass(path):
    numbers = exercises(int(path.name[:2]))
    assert 3 <= len(numbers) <= 5
    empty = [cell.source for cell in cells(path, "code") if "exercise" in cell.metadata.get("tags", [])]
    solved = re.findall(r"<summary>Solution</summary>.*?```python\n(.*?)```.*?</details>", text(path), re.DOTALL)
    assert [re.findall(r'check\("([\d.]+)"', code) for code in empty] == [[n] for n in numbers]
    assert [re.findall(r'check\("([\d.]+)"', code) for code in solved] == [[n] for n in numbers]
    for code, right in [*((code, False) for code in empty), *((code, True) for code in solved)]:
        found, code = [], code.replace("from ssl_nb.teaching import check\n", "")
        exec(code, {**names(path), "check": lambda number, answer, found=found: found.append(check(number, answer))})
        assert [bool(outcome) for outcome in found] == [right], (code, found)


@pytest.mark.parametrize("path", LESSONS, ids=IDS)
def test_the_readme_lists_a_lesson_with_its_question_and_time(path):
    top = cells(path, "markdown")[0].source
    number, title = re.match(r"# (\d+) · (.*)", top).groups()
    question, minutes = re.search(r"\*\*Question\.\*\* (.*)", top)[1], re.search(r"Reading time\*\*: (\d+)", top)[1]
    readme = (path.parents[2] / "README.md").read_text(encoding="utf-8")
    assert f"| {number} | [{title}](nbs/course/{path.name}) | {question} | {minutes} min |" in readme
