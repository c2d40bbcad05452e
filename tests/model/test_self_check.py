"""What the tests did not run with is tried on a small model before anything is answered."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conftest import FAMILIES, tiny_lm
from imprag.errors import ImpRAGError
from imprag.model import hooks, self_check, versions
from imprag.model.config import ImpRAGConfig
from imprag.model.model import ImpRAGModel

ROOT = Path(__file__).parents[2]
CONFIG = ImpRAGConfig(base_model="my-model", b=1, t=4, max_passage_tokens=16)


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a version of transformers that the tests have not met."""
    self_check._reason.cache_clear()
    monkeypatch.setattr(self_check, "untested_versions", lambda: "transformers 5.99.0")


def test_an_untested_version_that_computes_the_same_is_taken(newer: None, family: str) -> None:
    state = torch.random.get_rng_state()
    ImpRAGModel(tiny_lm(family), CONFIG)
    assert self_check._reason.cache_info().misses == 1
    ImpRAGModel(tiny_lm(family), CONFIG)
    assert self_check._reason.cache_info().hits == 1
    tiny_lm(family)
    assert state.shape == torch.random.get_rng_state().shape


def test_the_self_check_draws_no_random_numbers(newer: None) -> None:
    lm = tiny_lm()
    state = torch.random.get_rng_state()
    ImpRAGModel(lm, CONFIG)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_version_that_renames_the_cache_is_refused(
    newer: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What transformers 5.24 did to code that knew the argument by its name."""

    at = hooks.LayerInput.at

    def keeps_the_cache(self: hooks.LayerInput, index: torch.Tensor) -> hooks.LayerInput:
        caches = {n: x for n, x in self.arguments.items() if "cache" in n or "past" in n}
        token = at(self, index)
        return token._replace(arguments={**token.arguments, **caches})

    monkeypatch.setattr(hooks.LayerInput, "at", keeps_the_cache)
    with pytest.raises(ImpRAGError, match=r"my-model.*not tested with transformers 5\.99\.0"):
        ImpRAGModel(tiny_lm(), CONFIG)


def test_a_version_whose_layers_ignore_what_they_are_handed_is_refused(
    newer: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drops(self: hooks.LayerWrapper, hidden_states: torch.Tensor, **call: Any) -> Any:
        if self.before is not None:
            self.before(hooks.LayerInput(hidden_states, call))
        return self.layer(hidden_states, **call)

    monkeypatch.setattr(hooks.LayerWrapper, "forward", drops)
    with pytest.raises(ImpRAGError, match="my-model"):
        ImpRAGModel(tiny_lm(), CONFIG)


def test_tested_families_are_those_of_the_tests() -> None:
    assert set(FAMILIES) == versions.TESTED_FAMILIES
    assert not versions.untested_versions()


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return {canonicalize_name(package): version for package, version in pairs}


def test_declared_ranges_are_those_that_the_tests_run_with() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = dict(project["optional-dependencies"])
    lowest, newest, usual = map(
        pins, ("constraints-lowest.txt", "constraints-newest.txt", "constraints.txt")
    )
    # The clients that the server is tested with run with their usual versions only.
    for requirement in map(Requirement, extras.pop("suites")):
        assert requirement.specifier.contains(usual[canonicalize_name(requirement.name)])
    declared = [Requirement(line) for line in project["dependencies"]]
    declared += [Requirement(line) for lines in extras.values() for line in lines]
    for requirement in declared:
        name = canonicalize_name(requirement.name)
        if not any(part.operator == ">=" for part in requirement.specifier):
            continue
        (low,) = (part.version for part in requirement.specifier if part.operator == ">=")
        same = re.sub(r"(\.0)+$", "", lowest[name]) == re.sub(r"(\.0)+$", "", low)
        assert same, f"{requirement}: the lowest version tested is {lowest[name]}"
        for tested in (lowest, newest, usual):
            assert name not in tested or requirement.specifier.contains(tested[name]), requirement
    for name, known in versions.TESTED_VERSIONS.items():
        assert set(known) == {tested[name] for tested in (lowest, newest, usual)}
    for package in ("torch", "transformers", "peft", "faiss-cpu", "numpy"):
        (requirement,) = (r for r in map(Requirement, project["dependencies"]) if r.name == package)
        major, minor = map(int, newest[package].split(".")[:2])
        assert not requirement.specifier.contains(f"{major}.{minor + 1}.0"), requirement
