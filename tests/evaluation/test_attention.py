"""Attention figures: the networks of the checkpoints, on the clip's features and frames."""

from __future__ import annotations

import json
import shutil

import av
import numpy as np
import pytest
from matplotlib.image import imread
from safetensors.numpy import load_file

from avbench.evaluation.attention import attention, draw_attention
from avbench.evaluation.evaluator import evaluate
from avbench.evaluation.plots import plot_attention
from avbench.features.store import FeatureStore
from avbench.types import AvbenchError

CLIP = "c3-004"


@pytest.fixture
def made(tiny, with_features, tmp_path):
    """A benchmark with features, one clip on disk, and a run of AV-CIL."""
    benchmark = tiny()
    with_features(benchmark)
    path = benchmark.home / "clips" / f"{CLIP}.mp4"
    path.parent.mkdir(parents=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=16)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("aac", rate=16_000)
        for number in range(16):
            picture = np.full((48, 64, 3), 16 * number, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(video.encode())
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), "fltp", "mono")
        sound.sample_rate = 16_000
        container.mux(audio.encode(sound))
        container.mux(audio.encode())
    settings = {"epochs": "3", "batch_size": "8", "learning_rate": "0.01"}
    evaluate(benchmark, "avcil", seeds=[0, 4], out=tmp_path / "avcil", settings=settings)
    return benchmark, tmp_path / "avcil"


def by_hand(weights, audio, visual):
    """Eq. 2 and 3 in NumPy, of one clip: audio (d,), visual (L, S, d)."""

    def project(name, x):
        return np.tanh(x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])

    def softmax(x, axis):
        e = np.exp(x - x.max(axis=axis, keepdims=True))
        return e / e.sum(axis=axis, keepdims=True)

    query, keys = project("attn_audio_proj", audio), project("attn_visual_proj", visual)
    spatial = softmax(query * keys, 1)
    temporal = softmax(query * (spatial * keys).sum(axis=1), 0)
    return spatial.mean(axis=-1), temporal.mean(axis=-1)


def test_attention_is_that_of_the_papers_equations(made):
    benchmark, run = made
    found = attention(run, benchmark, CLIP, seed=4)
    assert found.spatial.shape == (3, 8, 2, 2)
    store = FeatureStore.of(benchmark, "filterbank")
    rows = store.rows_of([CLIP])
    audio, visual = (of(rows)[0].astype(np.float64) for of in (store.audio, store.visual))
    for step in range(3):
        weights = load_file(run / "seed-4" / f"step-{step + 1}.safetensors")
        spatial, temporal = by_hand(weights, audio, visual.reshape(8, 4, -1))
        assert found.spatial[step].reshape(8, 4) == pytest.approx(spatial, abs=1e-5)
        assert found.temporal[step] == pytest.approx(temporal, abs=1e-5)
    assert found.spatial.sum(axis=(2, 3)) == pytest.approx(1, abs=1e-5)
    assert found.temporal.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert np.abs(np.diff(found.spatial, axis=0)).max() > 1e-4  # training moves it


@pytest.mark.slow
def test_the_command_draws_it_over_the_clips_frames(made, avbench, tmp_path):
    benchmark, run = made
    options = ["attention", str(run), "--clip", CLIP, "--benchmark", str(tmp_path / "tiny.toml")]
    home = {"AVBENCH_HOME": str(benchmark.home.parent)}
    text = avbench(*options, "--out", "a.png", env=home).stdout
    assert f"attention of {CLIP} after 3 steps: a.png" in text
    record = json.loads(avbench(*options, "--out", "b.png", "--json", env=home).stdout)
    assert record["temporal"] == attention(run, benchmark, CLIP, seed=0).temporal.tolist()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    # Frames brighten from black to white, whatever lies over them.
    image = imread(tmp_path / "a.png")[..., :3]
    assert np.ptp(image.mean(axis=2)[: len(image) // 2].mean(axis=0)) > 0.2


def test_what_is_attended_to_is_what_stands_out(tmp_path):
    """A bright cell and a strong frame are where the weights say."""
    spatial = np.full((1, 2, 2, 2), 0.1)
    spatial[0, :, 0, 1] = 0.7
    dark = np.zeros((2, 40, 40, 3), np.uint8)
    plot_attention(dark, spatial, np.array([[0.9, 0.1]]), tmp_path / "a.png", title="$x$ & <y>")
    image = imread(tmp_path / "a.png")[..., :3].sum(axis=2)
    height, width = image.shape
    middle = slice(height // 3, 2 * height // 3)
    strong, weak = image[middle, width // 6 : width // 2], image[middle, 3 * width // 5 : -20]
    assert strong.mean() < weak.mean()  # little attention in time fades into the white page
    top_right = strong[: len(strong) // 2, strong.shape[1] // 2 :]
    bottom_left = strong[len(strong) // 2 :, : strong.shape[1] // 2]
    assert top_right.mean() > bottom_left.mean()


@pytest.mark.slow
def test_what_cannot_be_drawn_is_said_in_one_line(made, tmp_path, with_features):
    benchmark, run = made
    toml = str(tmp_path / "tiny.toml")

    def error(run, *, clip=CLIP, out="a.png", code, seed=None, benchmark=toml):
        with pytest.raises(AvbenchError) as raised:
            draw_attention(run, clip, tmp_path / out, seed=seed, benchmark=benchmark)
        assert not (tmp_path / "a.png").exists()
        assert raised.value.exit_code == code
        (line,) = str(raised.value).splitlines()
        return line

    settings = {"epochs": "1", "batch_size": "8"}
    evaluate(benchmark, "lwf", seeds=[0], out=tmp_path / "l", settings=settings, modality="audio")
    shutil.copytree(run, tmp_path / "bare")
    (tmp_path / "bare" / "seed-0" / "step-2.safetensors").unlink()
    shutil.copytree(run, tmp_path / "torn")
    (tmp_path / "torn" / "seed-0" / "step-1.safetensors").write_bytes(b"no tensors")
    assert "lwf-audio has no audio-guided attention" in error(tmp_path / "l", code=2)
    assert "no checkpoint" in error(tmp_path / "bare", code=1)
    assert "not a checkpoint of avcil" in error(tmp_path / "torn", code=1)
    assert "not a finished run" in error(tmp_path, code=1)
    assert "has no clip 'nothing'" in error(run, clip="nothing", code=2)
    assert "no clip " in error(run, clip="c0-001", code=1)
    assert "ends in .png or .svg" in error(run, out="a.pdf", code=2)
    assert "has no seed 1: choose of 0, 4" in error(run, code=2, seed=1)
    assert "another tiny" in error(run, code=2, benchmark="toy-ci")
    assert "tiny" in error(run, code=2, benchmark=None)
    with_features(benchmark, noise=0.8)
    assert "not the features the run was made from" in error(run, code=1)


@pytest.mark.slow
def test_a_method_of_other_make_has_no_attention(made, avbench, tmp_path):
    _, run = made
    record = json.loads((run / "result.json").read_text())
    (tmp_path / "other.py").write_text("class Other:\n    pass\n")
    record["config"]["method"] = f"{tmp_path / 'other.py'}:Other"
    (run / "result.json").write_text(json.dumps(record))
    command = ["attention", str(run), "--clip", CLIP, "--out", "a.png"]
    assert "has no audio-guided attention" in avbench(*command, expect=2).stderr
