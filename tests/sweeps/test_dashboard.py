"""The W&B workspace: built, written as JSON and read back, without a network."""

import json

import pytest

workspaces = pytest.importorskip("wandb_workspaces.workspaces")

from sweeps.dashboard import workspace  # noqa: E402


def test_the_dashboard_survives_json():
    view = workspace("someone", "leo", "glyphs_1shot")._to_model()
    text = view.model_dump_json(by_alias=True)
    read = workspaces.Workspace._from_model(type(view).model_validate_json(text))
    assert json.loads(read._to_model().model_dump_json(by_alias=True)) == json.loads(text)
    assert (read.entity, read.project, read.name) == ("someone", "leo", "Ablations of glyphs_1shot")
    assert "glyphs_1shot" in read.runset_settings.filters
    assert [section.name for section in read.sections] == ["Accuracy", "Terms of the objective", "Settings that differ"]
    bars, validation, _ = read.sections[0].panels
    assert [metric.name for metric in bars.metrics] == ["test/accuracy"]
    assert [metric.name for metric in validation.y] == ["val/accuracy"]
    assert bars.groupby.name == validation.groupby.name == "names.ablation"
