"""The page of the papers' protocols: every row has its command, and hours are those that were estimated."""

import re
import shlex

import pytest

from experiments import paper_protocols
from experiments.benchmarks.tpu import RESULTS, read_results
from experiments.paper_protocols import SECTION, SHOWN, commands
from experiments.run.__main__ import make_parser
from experiments.tables import TABLES


@pytest.fixture(scope="module")
def text() -> str:
    return commands(read_results(RESULTS))


def test_every_row_that_can_run_has_its_command(text) -> None:
    asked = []
    for line in text.splitlines():
        if line.startswith("PAPER="):
            paper = shlex.split(line.removeprefix("PAPER=(").removesuffix(")"))
        if line.startswith("python"):
            args = make_parser().parse_args([*shlex.split(line)[3:-1], *paper])
            assert args.regime == "paper" and args.init == "models"
            ((table,), (row,)) = args.tables, args.row
            assert args.data_dir == ("cityscapes" if table == "v3plus_table7" else "VOCdevkit/VOC2012")
            asked.append((table, row))
    runnable = [(name, row) for name in SHOWN for row, one in TABLES[name].named_rows().items() if not one.needs]
    assert asked == runnable
    assert {name: sum(table == name for table, _ in asked) for name in SHOWN} == {
        "v3_table5": 5,
        "v3_table6": 4,
        "v3plus_table3": 14,
        "v3plus_table5": 16,
        "v3plus_table7": 4,
    }


def test_rows_that_share_a_training_have_its_number(text) -> None:
    """DeepLabv3's final form stands in Tables 5 and 6 of its paper and in Table 3 of DeepLabv3+."""
    numbers = {
        (table, row): number
        for table, part in zip(SHOWN, text.split("### ")[1:], strict=True)
        for row, number in re.findall(r"\| `([\w-]+)` \| [\d.]+ \| (\d+) \|", part)
    }
    same = [
        ("v3_table5", "1_2_4-6_12_18-image_pooling"),
        ("v3_table6", "eval_os_8-ms-flip"),
        ("v3plus_table3", "train_os_16-eval_os_16"),
    ]
    assert len({numbers[one] for one in same}) == 1
    assert numbers["v3plus_table3", "train_os_16-eval_os_16-decoder"] not in {numbers[one] for one in same}
    assert len(set(numbers.values())) == max(map(int, numbers.values()))


def test_hours_are_estimated_or_not_there(monkeypatch) -> None:
    monkeypatch.setattr(paper_protocols, "SHOWN", ("v3_table6",))
    name = "v3_table5/1_2_4-6_12_18-image_pooling"
    fits = {"target": "v5e:4x4", "fits": True, "why": "", "estimated": {"hours": 1.26}}
    small = {"target": "v5e:1x1", "fits": False, "why": "needs 20 GiB"}
    other = {"target": "v6e:2x2", "fits": True, "estimated": {"hours": 9.0}}
    rows = {f"{name} on {one['target']}": one for one in (fits, small, other)}
    found = commands({"rows": rows})
    assert "| training | hours on v5e:1x1, estimated | hours on v5e:4x4, estimated |" in found
    assert "| `eval_os_8` | 78.51 | 1 | needs 20 GiB | 1.3 |" in found
    assert "| `eval_os_8-ms-flip-coco` | 82.70 | needs COCO |  |  |" in found
    del rows[f"{name} on v5e:1x1"]
    rows["another on v5e:1x1"] = small
    assert "| `eval_os_8` | 78.51 | 1 | not compiled yet | 1.3 |" in commands({"rows": rows})


def test_the_page_is_as_generated(text, repo_root) -> None:
    page = (repo_root / "experiments/paper_protocols.md").read_text(encoding="utf-8")
    assert SECTION.replace(page, text) == page
