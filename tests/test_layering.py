"""The house's layers, read from the code: who may import whom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
VERBS = {
    f"ncvc.{verb}"
    for verb in (
        *("train", "bench", "export", "report", "curate", "fit_tokenizer", "pack", "synthesize", "judge"),
        *("generate", "serve", "show", "evaluate", "download"),
    )
}
HYDRA_AWARE = {"ncvc.config", "ncvc.command_line", "ncvc.sweep_launcher"}
TENSOR_NOUNS = {"ncvc.model", "ncvc.planning", "ncvc.environment", "ncvc.run_folder", "ncvc.analysis"}
TENSOR_NOUNS |= {"ncvc.teachers.in_process", "ncvc.curation.scoring", "ncvc.serving"}
DATATROVE_STEPS = {  # imported inside functions
    f"ncvc.curation.{name}" for name in ("step", "steps", "reading_steps", "writing_steps", "scoring", "local")
}
ASSEMBLERS = {"ncvc.curation.pipeline"}  # may name a tensor noun, inside a function
HEAVY = {"flash_attn", "deepspeed", "pyarrow", "zstandard", "transformers", "datatrove", "fugashi", "umap"}
HEAVY |= {"ray", "sklearn", "trafilatura", "warcio", "vibrato", "hojichar", "matplotlib"}
HEAVY |= {"fastapi", "uvicorn", "starlette", "openai", "peft", "gguf", "xllamacpp"}
TOP_LEVEL = {
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "conf",
    "ncvc",
    "data_modules",
    "lit_modules",
    "tests",
    "notebooks",
}

FILES = sorted(path for package in ("ncvc", "data_modules", "lit_modules") for path in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports_of(path: Path, *, top_only: bool) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_only else ast.walk(tree)
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def is_in(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def is_tensor_side(name: str) -> bool:
    return is_in(name, TENSOR_NOUNS) or not name.startswith("ncvc")


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_layers_hold(path):
    name, imported = module_name(path), imports_of(path, top_only=False)
    if name.startswith("ncvc"):
        assert not any(is_in(other, {"lightning", "pytorch_lightning"}) for other in imported)
        assert not any(is_in(other, {"data_modules", "lit_modules"}) for other in imported)
    if name.startswith("ncvc") and not is_tensor_side(name) and name not in VERBS:
        at_import = imports_of(path, top_only=True)
        assert not any(is_in(other, {"torch"}) for other in at_import)
        if name not in HYDRA_AWARE | ASSEMBLERS:
            assert not any(is_in(other, {"torch", *TENSOR_NOUNS}) for other in imported)
    if name not in VERBS | HYDRA_AWARE:
        assert not any(is_in(other, {"hydra"}) for other in imported)
        assert not any(is_in(other, VERBS) for other in imported)
    if name.startswith("data_modules"):
        assert not any(is_in(other, {"lit_modules"}) for other in imported)
    if name.startswith("lit_modules"):
        assert not any(is_in(other, {"data_modules"}) for other in imported)
    allowed = {"datatrove"} if name in DATATROVE_STEPS else set()
    assert not any(is_in(other, HEAVY - allowed) for other in imports_of(path, top_only=True))
    assert name in DATATROVE_STEPS or not any(
        is_in(other, DATATROVE_STEPS) for other in imports_of(path, top_only=True)
    )


def test_verbs_are_short_programs():
    for verb in VERBS:
        assert len((ROOT / (verb.replace(".", "/") + ".py")).read_text().splitlines()) <= 100


def test_nothing_visible_but_the_owners_top_level():
    visible = {
        path.name for path in ROOT.iterdir() if not path.name.startswith(".") and not path.name.endswith(".egg-info")
    }
    assert visible <= TOP_LEVEL | {"outputs", "multirun", "build", "dist"}


def test_no_pickle_is_loaded_unsafely():
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert "weights_only=False" not in text, path
        assert "pickle.load" not in text, path


def test_bounds_exclude_the_malicious_lightning_releases():
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    lightning = next(r for r in map(Requirement, requires("ncvc")) if r.name == "lightning")
    assert not any(lightning.specifier.contains(bad) for bad in ("2.6.2", "2.6.3"))
    assert lightning.specifier.contains("2.6.6")
    torch = next(r for r in map(Requirement, requires("ncvc")) if r.name == "torch")
    assert [torch.specifier.contains(v) for v in ("2.10.0", "2.11.0", "2.13.0", "2.13.0+cpu", "2.14.0")] == [
        False, True, True, True, False,
    ]  # fmt: skip
