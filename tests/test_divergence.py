"""Codes that differ after a change, counted block by block, and the figure of them."""

import json

import torch

from evolq.points import displace
from evolq.problem import prepare
from evolq.quantization import Quantization
from evolq.settings import Settings
from figures import divergence
from figures.__main__ import main


def test_codes_are_counted_where_they_differ():
    settings = Settings(
        quantization=Quantization("full", weight_bits=4), calibration_images=8, test_images=2
    )
    problem = prepare(settings)
    network, image = problem.test.forward.network, problem.test.forward.images[:1]
    start = problem.start, image
    none = divergence.differing(network, start, start)
    assert set(none.values()) == {0}
    assert list(none)[-1] == "head"
    jitter = {"head.input.scale": torch.full_like(problem.start["head.input.scale"], 1e-6)}
    assert divergence.differing(network, start, (displace(problem.start, jitter), image)) == none
    half = displace(problem.start, {"head.input.scale": jitter["head.input.scale"] * 5e5})
    moved = divergence.differing(network, start, (half, image))
    assert moved.pop("head") > 0.5, "codes of a scale 1.6 times as large are others"
    assert set(moved.values()) == {0}, "what runs before it stays"
    other = divergence.differing(network, start, (problem.start, 1 - image))
    assert all(share > 0.1 for share in other.values())


def test_quantizers_belong_to_blocks():
    assert divergence.block_of("blocks.3.attn.qkv.input") == "blocks.3"
    assert divergence.block_of("head.input") == "head"


def test_stored_rows_are_drawn_and_not_measured_again(tmp_path, monkeypatch):
    monkeypatch.delenv("EVOLQ_DATA", raising=False)
    rows = [
        {"scheme": scheme, "block": block, "shares": [share, 3 * share]}
        for scheme in divergence.SCHEMES
        for block, share in (("patch_embed", 0.0), ("blocks.0", 0.01), ("head", 0.2))
    ]
    stored = tmp_path / "divergence.jsonl"
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    stored.write_text(text)
    monkeypatch.setattr(divergence, "STORED", stored)
    divergence.main()
    main(["divergence"], tmp_path)
    words = (tmp_path / "divergence.txt").read_text()
    assert "mean of 2 images" in words
    assert "blocks.0 0.02, head 0.4" in words
    assert (tmp_path / "divergence.png").exists()
    assert stored.read_text() == text
