from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Interval, Le, Lt, MaxLen, MinLen, Predicate, doc
from config_samples import FULL, REGISTRIES, full, paths, problems

from med_sslal.config.parse_config import ConfigParser
from med_sslal.utils.errors import ConfigError

HINTS = {
    "name": "required",
    "num_cycles": "required",
    "type": "required",
    "num_classes": "required",
    "root": "required",
    "T_max": "required",
    "init_num": "required",
    "epochs": "default 50",
    "seed": "default 0",
    "lr": "default 0.001",
    "args": "arguments of the type",
    "arch": "section",
    "trainer": "section",
}


@pytest.mark.parametrize("change", ["doubled", "dropped", "upper", "swapped"])
@pytest.mark.parametrize("path", paths(full()), ids=".".join)
def test_misspelt_key_names_its_path_and_the_right_one(
    path: tuple[str, ...], change: str, tmp_path: Path
) -> None:
    config = full()
    here = config
    for name in path[:-1]:
        here = here[name]
    right = path[-1]
    wrong = {
        "doubled": right + right[-1],
        "dropped": right[:-1],
        "upper": right.upper(),
        "swapped": right[:-2] + right[-1] + right[-2],
    }[change]
    wrong = wrong if wrong != right else right.lower()
    # The same place in the order, so that line and column are known.
    renamed = {wrong if key == right else key: value for key, value in here.items()}
    here.clear()
    here.update(renamed)
    lines = problems(config, tmp_path)
    text = (tmp_path / "config.json").read_text().splitlines()
    dotted = ".".join([*path[:-1], wrong])
    assert len(lines) == 1, lines
    assert f" {dotted}: unknown key. Did you mean '{right}' (" in lines[0]
    assert HINTS.get(right, "") in lines[0]
    line, column = map(int, lines[0].split(" ")[0].split(":")[1:])
    assert text[line - 1][column - 1 :].startswith(f'"{wrong}"')


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ('trainer.epochs="10"', 'trainer.epochs: found the string "10"; allowed: integer, 1 or'),
        ("trainer.epochs=0", "found 0; allowed: integer, 1 or more"),
        ("trainer.epochs=2.0", "found 2.0; allowed: integer"),
        ("trainer.epochs=true", "found true; allowed: integer"),
        ("trainer.tensorboard=1", "found 1; allowed: true or false"),
        ("deterministic=yes", 'deterministic: found the string "yes"; allowed: true or false'),
        ("trainer.deterministic=true", "Did you mean 'deterministic' at the top level?"),
        ("trainer.verbosity=3", "found 3; allowed: 0 or 1 or 2"),
        ("trainer.verbosity=true", "found true; allowed: 0 or 1 or 2"),
        ("trainer.precision=bf61", 'Did you mean "bf16"? Allowed: "fp32" or "bf16"'),
        ("trainer.monitor=val_loss", '"min KEY" or "max KEY"'),
        ("trainer.grad_clip=0", "more than 0"),
        ("trainer=3", "trainer: found 3; allowed: object"),
        ("n_gpu=-1", "0 or more"),
        ("n_gpu=all", 'allowed: integer, 0 or more, or "auto"'),
        ("name=a/b", "folder name"),
        ("image_size=[512]", "or list of 2 (integer, 32 or more), or null"),
        ("image_size=8", "found 8; allowed: integer, 32 or more, or list"),
        ("metrics=[\"froc\"]", "metrics[0]: unknown metric 'froc'"),
        ("metrics=coco_ap", 'found the string "coco_ap"; allowed: list of (string)'),
        ("arch.type=FasterRCN", "arch.type: unknown type 'FasterRCN'. Did you mean 'FasterRCNN'?"),
        ("arch.type=1", "arch.type: found 1; allowed: string"),
        ("arch.type=DeepLesion", "unknown type 'DeepLesion'"),
        ("arch.type=no_such.Net", "cannot import 'no_such'"),
        ("arch.type=json.Net", "module 'json' has no class 'Net'"),
        ("arch.args=[]", "arch.args: found the list []"),
        ("arch.args.backbone_name=resnet5", 'Did you mean "resnet50"?'),
        ("arch.args.num_classes=two", 'found the string "two"; allowed: integer'),
        ("arch.args.anchor_sizes=[[1],[2.5]]", "arch.args.anchor_sizes: found the list"),
        ("arch.args.weights_dir=3", "found 3; allowed: path or null"),
        ("dataset.args.window=[1]", "list of 2 (number)"),
        ("dataset.args.seed=1", "dataset.args.seed: unknown key"),
        ("optimizer.args.params=[]", "the program supplies 'params' itself"),
        ("optimizer.args.lr=high", "optimizer.args.lr: found the string"),
        ("optimizer.args.lr=-1", "optimizer.args.lr: Adam refuses these arguments: Invalid lear"),
        ("optimizer.type=LBFGS", "optimizer.type: unknown type 'LBFGS'"),
        ("optimizer.type=SparseAdam", "optimizer.type: unknown type 'SparseAdam'"),
        ("optimizer.type=SGD", "optimizer.args.amsgrad: unknown key"),
        ("lr_scheduler.type=LambdaLR", "lr_scheduler.type: unknown type"),
        ("lr_scheduler.type=StepLR", "lr_scheduler.args.step_size: required by StepLR"),
        ("lr_scheduler.interval=batch", '"epoch" or "step"'),
        ('lr_scheduler={"type": "OneCycleLR", "args": {"max_lr": 1}}', "OneCycleLR refuses"),
        ('lr_scheduler={"type": "ReduceLROnPlateau", "interval": "step"}', "follows the valid"),
        ('lr_scheduler={"type": "ConstantThenCosine"}', 'interval: ConstantThenCosine co'),
        ("lr_scheduler={}", "lr_scheduler.type: required key is missing"),
        ('al_settings.args.al_criterion=["entropi"]', "Did you mean 'entropy'?"),
        ("al_settings.args.seed=1", "the program supplies 'seed' itself"),
        ("ssl_settings.type=X", "ssl_settings.type: unknown key"),
        ("ssl_settings.args.treshold=0.5", "Did you mean 'threshold' (default null)?"),
        (f"optimizer.args.lr={10**309}", "found a number of 310 digits; allowed: number"),
        (f"trainer.epochs={10**309}", "found a number of 310 digits; allowed: integer, 1 or more"),
        (f"trainer.grad_clip={10**309}", "allowed: number, more than 0, or null"),
        (r'dataset.args.root="a\u0000b"', r'found the string "a\u0000b"; allowed: string'),
        ("trainer.save_dir= ", "allowed: string: a folder"),
        ("epochs=3", "epochs: unknown key. Did you mean 'trainer.epochs'?"),
        ("trainer.seed=3", "trainer.seed: unknown key. Did you mean 'seed' at the top level?"),
        ("trainr.epochs=3", "trainr: unknown key. Did you mean 'trainer' (section)?"),
        ("seed.x=3", "seed.x: unknown key; 'seed' is a value"),
        ("zzz=3", "zzz: unknown key; allowed: name, n_gpu"),
    ],
)  # fmt: skip
def test_wrong_setting(setting: str, words: str, tmp_path: Path) -> None:
    lines = problems(FULL, tmp_path, setting)
    assert [line for line in lines if words in line], lines


Share = Annotated[float, Interval(ge=0, le=1)]


class Ranges:
    def __init__(
        self,
        *,
        low: Annotated[int, Ge(1)] = 1,
        over: Annotated[float, Gt(0)] = 1,
        high: Annotated[int, Le(9)] = 1,
        under: Annotated[float, Lt(0.5)] = 0,
        share: Share = 0.5,
        inner: Annotated[float, Interval(gt=0, lt=1)] = 0.5,
        half: Annotated[float, Interval(ge=0, lt=1)] | None = None,
        count: Annotated[int, Ge(1)] | Literal["all"] = 1,
        outside: Annotated[int | None, Ge(1)] = None,
        some: Annotated[list[Share], MinLen(1), MaxLen(2)] = [0.5],  # noqa: B006
        pairs: tuple[tuple[Annotated[int, Gt(0)], ...], ...] = ((1,),),
        by_name: dict[str, Share] | None = None,
        even: Annotated[int, Predicate(lambda n: n % 2 == 0), doc("an even number")] = 2,
    ) -> None: ...


SOME = "list of (number, 0 to 1), 1 or more of them and at most 2 of them"


@pytest.mark.parametrize(
    ("name", "right", "wrong", "words"),
    [
        ("low", 1, 0, "integer, 1 or more"),
        ("over", 0.1, 0, "number, more than 0"),
        ("high", 9, 10, "integer, at most 9"),
        ("under", 0.4, 0.5, "number, less than 0.5"),
        ("share", 1, 1.5, "number, 0 to 1"),
        ("share", 0, -0.1, "number, 0 to 1"),
        ("inner", 0.9, 1.0, "number, more than 0 and less than 1"),
        ("half", None, 1, "number, 0 or more and less than 1, or null"),
        ("count", "all", 0, 'integer, 1 or more, or "all"'),
        ("outside", None, 0, "integer or null, 1 or more"),
        ("some", [0, 1], [], SOME),
        ("some", [0], [0, 2], SOME),
        (
            "some",
            [0],
            [0, 0, 0],
            SOME,
        ),
        ("pairs", [[1], [2]], [[1], [0]], "list of (list of (integer, more than 0))"),
        ("by_name", {"a": 1}, {"a": 2}, "object of (number, 0 to 1), or null"),
        ("even", 4, 3, "integer, an even number"),
    ],
)
def test_an_argument_out_of_its_range(
    name: str, right: Any, wrong: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REGISTRIES["ssl_settings"], "PseudoLabeller", Ranges)

    def check(value: Any) -> None:
        config = full()
        config["ssl_settings"]["args"] = {name: value}
        ConfigParser(config, REGISTRIES)

    check(right)
    with pytest.raises(ConfigError) as caught:
        check(wrong)
    path, _, sentence = str(caught.value).partition(": ")
    assert path == f"config ssl_settings.args.{name}"
    assert sentence.startswith("found ") and sentence.endswith(f"; allowed: {words}")


def test_all_problems_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = FULL.replace('"seed": 202108', '"seed": "x"').replace('"epochs"', '"epoch"')
    text = text.replace('"verbosity": 2', '"verbosity": 2, "verbosity": 1')
    text = text.replace('"num_classes": 2', '"num_clases": 2').replace('"lr": 3e-4', '"lr": null')
    assert problems(text, tmp_path, "n_workers=-1") == [
        'config.json:5:13 seed: found the string "x"; allowed: integer, 0 or more',
        "config.json:11:80 arch.args.num_clases: unknown key."
        " Did you mean 'num_classes' (required)?",
        "config.json:18:49 optimizer.args.lr: found null; allowed: number",
        "config.json:32:9 trainer.epoch: unknown key. Did you mean 'epochs' (default 50)?",
        "config.json:32:84 trainer.verbosity: this key was given before; keep one of them",
        "--set n_workers: found -1; allowed: integer, 0 or more",
    ]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (("name",), "name: required key is missing"),
        (("arch",), "arch: required key is missing (it needs type)"),
        (("al_settings",), "it needs num_cycles, type"),
        (("al_settings", "num_cycles"), "al_settings.num_cycles: required key is missing"),
        (("optimizer", "type"), "optimizer.type: required key is missing (one of ASGD"),
        (("arch", "args", "num_classes"), "arch.args.num_classes: required by FasterRCNN"),
        (("dataset", "args"), "dataset.args.root: required by DeepLesion, but missing"),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else "",
)
def test_missing(path: tuple[str, ...], words: str, tmp_path: Path) -> None:
    config = full()
    here = config
    for name in path[:-1]:
        here = here[name]
    del here[path[-1]]
    lines = problems(config, tmp_path)
    assert len(lines) == 1 and words in lines[0], lines


@pytest.mark.parametrize(
    "content", [None, b"\xff\xfe{}", b"[1]"], ids=["missing", "binary", "list"]
)
def test_unreadable_file_is_one_sentence(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"c\.json"):
        ConfigParser.from_file(path, REGISTRIES)
