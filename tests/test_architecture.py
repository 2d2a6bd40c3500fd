"""The import direction of the design, no cycles, and files that stay small, read off the source itself."""

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "routerjax"
ROOT = PACKAGE.parent

# What each part may import from routerjax. A part is a package below routerjax/ or a module in it.
GROUND = {
    "atomic",
    "bradley_terry",
    "calibration",
    "config",
    "display",
    "distributed",
    "endpoints",
    "errors",
    "likelihoods",
    "losses",
    "metrics",
    "order",
    "partitioning",
    "process",
    "prompts",
    "registry",
    "policies",
    "routing",
    "scoring",
    "sealing",
    "tables",
    "typing",
    "validation",
    "yaml_text",
}
MODELS = GROUND | {"models", "pretrained"}
FAMILIES = MODELS | {"features", "families"}
ROUTER = FAMILIES | {"data", "router"}
ALLOWED = {
    **{part: GROUND for part in GROUND},
    "data": GROUND,
    "pretrained": GROUND,
    "models": GROUND,
    "features": MODELS,
    "training": GROUND,
    "families": MODELS | {"features"},
    "router": FAMILIES,
    "evaluation": ROUTER,
    "runtime": set(),  # a file of every bundle, which needs no routerjax
    "formats": ROUTER | {"runtime"},
    "serving": ROUTER | {"runtime"},
    "plugins": ROUTER | {"runtime", "serving"},
    "pipeline": ROUTER | {"evaluation", "formats", "training"},
    "demo": ROUTER | {"evaluation", "formats", "pipeline", "training"},
    "commands": ROUTER | {"demo", "evaluation", "formats", "pipeline", "runtime", "serving", "training"},
    "cli": GROUND | {"commands", "formats"},
    # What the package itself exports; nothing below imports it through the package.
    "__init__": ROUTER | {"evaluation", "formats", "training"},
}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: Path) -> set[str]:
    """Modules of routerjax that a file imports, anywhere in it; `from package import module` counts as the module.

    A name that the package itself exports is counted as an import of ``routerjax``, which only scripts may do.
    """
    known = {module_name(source) for source in sources()}
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative imports hide the direction"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (members & known) | ({node.module} if members - known else set())
    return {name for name in names if name.split(".")[0] == "routerjax"}


def top_level_libraries(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    part = part_of(module_name(path))
    used = {part_of(name) for name in imports(path)} - {part}
    assert part in ALLOWED, f"{part} is not in the design: give it a place in ALLOWED"
    assert used <= ALLOWED[part], f"{part} may not import {sorted(used - ALLOWED[part])}"


def test_contributors_are_told_the_ground_floor() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (listed,) = re.findall("the ground floor: (.*)", text)
    assert set(listed.split()) == GROUND


def test_no_cycles() -> None:
    graph = {module_name(path): imports(path) for path in sources()}
    graph.pop("routerjax")
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in done:
            for target in graph.get(module, ()):
                # A package's __init__ re-exports its own modules; they do not import it back.
                visit(target, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_families_never_import_each_other() -> None:
    models = PACKAGE / "models"
    shared = {
        "routerjax.models.layers",
        "routerjax.models.bert_encoder",
        "routerjax.models.attention",
        "routerjax.models.decoder",
        "routerjax.models.decoder_config",
        "routerjax.models.decoder_layers",
        "routerjax.models.linear",
        "routerjax.models.encoders",
        "routerjax.models.flops",
    }
    for path in models.glob("*.py"):
        if path.name != "__init__.py":
            assert imports(path) & {module_name(p) for p in models.glob("*.py")} <= shared, path


def test_models_and_training_know_no_outside_formats() -> None:
    for path in [*(PACKAGE / "models").glob("*.py"), *(PACKAGE / "training").glob("*.py")]:
        assert not top_level_libraries(path) & {"transformers", "tokenizers", "safetensors", "datasets", "pyarrow"}, (
            path
        )


def test_training_knows_no_parameters_name() -> None:
    for path in (PACKAGE / "training").glob("*.py"):
        for word in ("encoder", "layer_", "embedding", "classifier", "head"):
            names = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
            assert word not in names, f"{path} knows a parameter's name: {word}"


def test_torch_is_never_used_at_run_time() -> None:
    for path in sources():
        assert not top_level_libraries(path) & {"torch", "pandas"}, path
        is_asked = path == PACKAGE / "pretrained" / "auto_classes.py"  # where a pretrained folder is read
        assert is_asked or "transformers" not in top_level_libraries(path), path


def test_files_stay_small() -> None:
    python = [*sources(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in python}
    assert {path: lines for path, lines in lengths.items() if lines > 400} == {}


# What a battle crosses from its file to the gradient, and a prompt from its text to the decision.
WALKED = {
    *("data", "families", "features", "formats", "likelihoods", "models"),
    *("pipeline", "policies", "router", "scoring", "training"),
}


def functions(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]


def test_no_function_takes_more_than_ten_arguments() -> None:
    wide = {}
    for path in sources():
        if part_of(module_name(path)) in WALKED:
            for function in functions(path):
                arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
                count = len([argument for argument in arguments if argument.arg not in ("self", "cls")])
                wide |= {f"{module_name(path)}.{function.name}": count} if count > 10 else {}
    assert wide == {}


def test_what_has_a_registry_is_not_told_apart_by_its_name() -> None:
    from routerjax.families import FAMILIES
    from routerjax.features import FEATURIZERS
    from routerjax.formats import FORMATS
    from routerjax.likelihoods import LIKELIHOODS
    from routerjax.policies import POLICIES

    names = {name for registry in (FAMILIES, FEATURIZERS, FORMATS, LIKELIHOODS, POLICIES) for name in registry}
    branches = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            compared = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            is_equality = compared and all(isinstance(operator, ast.Eq | ast.NotEq) for operator in node.ops)
            values = {getattr(side, "value", None) for side in compared if isinstance(side, ast.Constant)}
            if is_equality and values & names:
                branches.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert branches == []


# Parts whose docstrings and names the two tests below read, with all of the tests.
NOUN_CLAUSES = re.compile("(What|Of|Those|These|Whether|That|Which|How|Where|When|As|The same|One|Other values)\\b")
NAMES_OF_NOTHING = {"asked", "called", "found", "meant", "own", "said", "taken", "told"}


def written() -> list[Path]:
    return [*sources(), *sorted((ROOT / "tests").rglob("*.py"))]


def docstrings(tree: ast.AST) -> Iterator[str]:
    """Docstrings of modules, classes and functions, and those below a name that is assigned."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
            for before, after in itertools.pairwise(node.body):
                is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                if isinstance(before, ast.Assign | ast.AnnAssign) and is_text:
                    yield str(after.value.value)


def test_docstrings_open_with_a_verb_or_the_thing_itself() -> None:
    for path in written():
        for docstring in docstrings(ast.parse(path.read_text())):
            assert not NOUN_CLAUSES.match(docstring), f"{path}: {docstring}"


def test_variables_are_named_after_what_they_hold() -> None:
    for path in written():
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.arg if isinstance(node, ast.arg) else node.id if isinstance(node, ast.Name) else ""
            assert name not in NAMES_OF_NOTHING, f"{path}:{node.lineno}: {name}"
