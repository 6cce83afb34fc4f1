"""What is used of TensorRT exists in every version that a robot may have.

10.3 comes with JetPack 6.2, 10.16 with JetPack 7.2, 11.4 can be installed there. The source is
walked, so that a newly used name is found without a robot. It reads as TensorRT's by the names of
its variables: `trt`, `builder`, `config`, ... are what `CLASSES` says, also with an underscore.
"""

import ast
import json
from pathlib import Path

import krabby.policy.tensorrt
import pytest
from krabby.policy.tensorrt import toolkit

LISTS = {
    path.stem: json.loads(path.read_text())
    for path in sorted((Path(__file__).parent / "data" / "tensorrt_api").glob("*.json"))
}
SOURCE = Path(toolkit.__file__)
CLASSES = {
    "trt": "tensorrt",
    "logger": "Logger",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "each": "ParserError",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "tensor": "ITensor",
    "cache": "ITimingCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
}
OURS = {("tensor", "is_input"), ("each", "is_input"), ("each", "shape"), ("each", "name")}
"""Attributes of our own `EngineTensor`, which goes by these names too."""


def variable(node: ast.expr) -> str:
    """`trt` of trt.x and of self._trt.x; "" of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.attr.lstrip("_") if node.value.id == "self" else ""
    return ""


def uses(source: str) -> set[tuple[str, str]]:
    """(class, attribute) of everything that is used of TensorRT."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute) or node.attr.startswith("__"):
            continue
        owner = node.value
        name = variable(owner)
        if name in CLASSES and (name, node.attr) not in OURS:
            found.add((CLASSES[name], node.attr))
        # trt.BuilderFlag.TF32
        if isinstance(owner, ast.Attribute) and variable(owner.value) == "trt":
            found.add((owner.attr, node.attr))
    return found


def methods_of(name: str) -> set[str]:
    """What a subclass of TensorRT's class `name` in the source overrides."""
    (found,) = [
        node
        for node in ast.walk(ast.parse(SOURCE.read_text()))
        if isinstance(node, ast.ClassDef)
        and any(isinstance(base, ast.Attribute) and base.attr == name for base in node.bases)
    ]
    return {each.name for each in found.body if isinstance(each, ast.FunctionDef)} - {"__init__"}


def test_the_lists_are_those_of_the_versions_robots_have():
    assert sorted(LISTS) == ["10.16", "10.3", "11.4"]
    # what 11 has dropped is only in the older ones: they are lists of different versions
    dropped = [("BuilderFlag", "FP16"), ("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH")]
    for kind, name in dropped:
        assert [name in LISTS[version][kind] for version in ("10.3", "10.16", "11.4")] == [
            True,
            True,
            False,
        ]


def test_the_walk_sees_what_is_used():
    found = uses(SOURCE.read_text())
    assert len(found) > 40
    for expected in (
        ("tensorrt", "Builder"),
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
        ("IBuilderConfig", "builder_optimization_level"),
        ("IExecutionContext", "execute_async_v3"),
        ("Runtime", "deserialize_cuda_engine"),
        ("ICudaEngine", "get_tensor_dtype"),
        ("INetworkDefinition", "num_inputs"),
        ("ITimingCache", "serialize"),
        ("ParserError", "desc"),
    ):
        assert expected in found


@pytest.mark.parametrize("version", sorted(LISTS))
def test_everything_used_is_there_in(version):
    names = LISTS[version]
    missing = [
        f"{kind}.{name}"
        for kind, name in sorted(uses(SOURCE.read_text()))
        if name not in names[kind]
    ]
    assert missing == []


@pytest.mark.parametrize("version", sorted(LISTS))
@pytest.mark.parametrize("name", ["ILogger", "IProgressMonitor"])
def test_what_is_overridden_is_asked_for_in(version, name):
    assert methods_of(name) <= set(LISTS[version][name])


@pytest.mark.parametrize(
    "line",
    [
        "builder.platform_has_fast_fp16",
        "config.set_flag(trt.BuilderFlag.FP16)",
        "self._engine.device_memory_size",
        "trt.Weightless",
    ],
)
def test_a_name_that_a_version_lacks_is_found(line):
    assert any(
        name not in names.get(kind, ()) for names in LISTS.values() for kind, name in uses(line)
    )


def test_no_other_module_touches_tensorrt():
    for path in Path(krabby.policy.tensorrt.__file__).parent.glob("*.py"):
        if path == SOURCE:
            continue
        tree = ast.parse(path.read_text())
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        imports = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert "trt" not in names, path.name
        assert not {each for each in imports if each.startswith("tensorrt")}, path.name
