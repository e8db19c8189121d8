"""Videos from files, bytes, folders, frames and arrays: the frames chosen are the frames got."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests import support
from tests.preprocessor import helpers
from tests.preprocessor.helpers import (
    frame_numbers,
    image_processor,
    picture,
    video_decoding,
    video_processing,
)

CHOICES = {
    "uniform": {"num_frames": 5},
    "one": {"num_frames": 1},
    "many": {"num_frames": 64},
    "middle": {"num_frames": 7, "sampling": "middle"},
    "bound": {"num_frames": 3, "bound": (1.0, 1.6)},
    "fps": {"fps": 5},
}


@pytest.fixture(scope="module")
def processor():
    return video_processing.InternVLChatVideoProcessor(size=14)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """60 frames at 25 per second, a keyframe every ten."""
    pytest.importorskip("av")
    return helpers.write_video(tmp_path_factory.mktemp("clips") / "clip.mp4")


def read(processor, source, **options):
    found = processor.read(source, **options)
    return found, frame_numbers(np.stack(found.frames))


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("seek", [True, False, None])
def test_the_chosen_frames_are_decoded(processor, clip, choice, seek):
    found, numbers = read(processor, clip, seek=seek, **CHOICES[choice])
    assert (found.total, found.rate) == (60, 25.0)
    assert numbers == found.indices
    if choice == "bound":
        assert numbers == [27, 32, 37]


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("clip.mkv", "libx264"),
        ("clip.ts", "libx264"),
        ("clip.flv", "libx264"),
        ("clip.h264", "libx264"),
        ("clip.avi", "mpeg4"),
        ("clip.mov", "mpeg4"),
        ("clip.mpg", "mpeg2video"),
        ("clip.webm", "libvpx-vp9"),
    ],
)
def test_containers_with_and_without_a_usable_index(processor, tmp_path, name, codec):
    av = pytest.importorskip("av")
    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV cannot encode {codec}")
    file = helpers.write_video(tmp_path / name, codec=codec)
    for seek in (True, False):
        found, numbers = read(processor, file, seek=seek, num_frames=6)
        assert found.total == 60
        # Lossy codecs may be off by a grey level or two, which is half a frame number.
        assert np.abs(np.array(numbers) - np.array(found.indices)).max() <= 2


def test_bytes_paths_and_data_urls_give_the_same(processor, clip):
    import base64

    content = clip.read_bytes()
    expected = processor(clip, num_frames=4)["pixel_values_videos"]
    data_url = "data:video/mp4;base64," + base64.b64encode(content).decode()
    for source in (str(clip), content, data_url, {"path": str(clip)}):
        assert np.array_equal(processor(source, num_frames=4)["pixel_values_videos"], expected)


def test_a_frame_is_one_tile_as_an_image_would_be(processor, clip):
    frame = picture(90, 30)
    made = processor([frame, frame], return_tensors="pt")
    alone = image_processor(14, max_tiles=1)(frame, return_tensors="pt")
    assert made["num_frames"] == [2]
    assert torch.equal(made["pixel_values_videos"][1], alone["pixel_values"][0])
    raw = processor([frame], do_normalize=False)["pixel_values_videos"]
    assert raw.dtype == np.uint8


def test_several_videos_of_different_length(processor, clip):
    made = processor([clip, [picture()] * 3, np.zeros((2, 20, 30, 3), np.uint8)], num_frames=None)
    assert made["num_frames"] == [8, 3, 2]
    assert made["pixel_values_videos"].shape == (13, 3, 14, 14)
    metadata = processor(clip, num_frames=2, return_metadata=True)["video_metadata"]
    assert metadata == [{"frames_indices": [14, 44], "total_num_frames": 60, "fps": 25.0}]


def test_frames_that_somebody_chose_are_all_taken(processor, tmp_path):
    frames = [Image.new("RGB", (20, 20), (4 * k,) * 3) for k in range(5)]
    arrays = np.stack([np.asarray(frame) for frame in frames])
    paths = []
    for number, frame in enumerate(frames):
        frame.save(tmp_path / f"{number}.png")
        paths.append(tmp_path / f"{number}.png")
    tensor = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    for source in (frames, [paths], arrays, tensor, arrays / 255):
        made = processor(source, do_normalize=False)["pixel_values_videos"]
        assert frame_numbers(made) == [0, 1, 2, 3, 4]
        made = processor(source, do_normalize=False, num_frames=2)["pixel_values_videos"]
        assert frame_numbers(made) == [1, 3]


def test_a_folder_is_in_the_order_of_its_numbers(processor, tmp_path):
    for number in range(12):
        Image.new("RGB", (20, 20), (4 * number,) * 3).save(tmp_path / f"frame_{number}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    _, numbers = read(processor, tmp_path, num_frames=12, sampling="middle")
    assert numbers == list(range(12))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        processor(tmp_path / "empty")


def test_animated_images_need_no_pyav(processor, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    frames = [Image.new("L", (20, 20), 4 * k) for k in range(10)]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:], duration=200)
    found, numbers = read(processor, stream.getvalue(), num_frames=5)
    assert (found.total, found.rate) == (10, 5.0)
    assert numbers == found.indices == [0, 2, 4, 5, 7]
    found, numbers = read(processor, stream.getvalue(), fps=1)
    assert numbers == found.indices == [2, 8]
    still, _ = read(processor, helpers.encoded(picture()), num_frames=3)
    assert still.indices == [0, 0, 0]


def test_a_missing_pyav_is_named(processor, clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"pip install av \(the \[video\] extra\)"):
        processor(clip)


def test_far_frames_are_reached_without_decoding_all(processor, clip, monkeypatch):
    decoded = []
    original = video_decoding._decode_packet
    monkeypatch.setattr(
        video_decoding, "_decode_packet", lambda packet: decoded.append(packet) or original(packet)
    )
    _, numbers = read(processor, clip, num_frames=1, bound=(2.2, 2.2))
    assert numbers == [55]
    assert len(decoded) < 20
    decoded.clear()
    read(processor, clip, num_frames=1, bound=(2.2, 2.2), seek=False)
    assert len(decoded) > 50


def test_more_frames_than_there_are(processor, tmp_path):
    pytest.importorskip("av")
    file = helpers.write_video(tmp_path / "short.mp4", 4)
    _, numbers = read(processor, file, num_frames=8)
    assert numbers == [0, 0, 1, 1, 2, 2, 2, 3]
    assert processor(file, num_frames=100)["num_frames"] == [100]


def test_random_needs_a_generator_and_obeys_it(processor, clip):
    picks = [
        read(
            processor, clip, num_frames=6, sampling="random", generator=np.random.default_rng(seed)
        )[1]
        for seed in (1, 1, 2)
    ]
    assert picks[0] == picks[1] != picks[2]
    with pytest.raises(ValueError, match="generator=numpy"):
        processor(clip, sampling="random")


def test_a_time_limit_names_the_file(processor, clip):
    with pytest.raises(TimeoutError, match=r"clip\.mp4.* took longer than timeout=0 s"):
        processor(clip, timeout=0)
    with pytest.raises(TimeoutError, match="took longer"):
        processor([picture()] * 3, timeout=0)
    assert processor(clip, timeout=None, num_frames=1)["num_frames"] == [1]


@pytest.mark.parametrize(
    "content", [b"", b"no video", b"\0" * 5000, b"GIF89a", b"\x89PNG", b"RIFF0000WEBP"]
)
def test_what_is_no_video(processor, content):
    pytest.importorskip("av")
    with pytest.raises(ValueError, match=r"video 1 of 1: \d+ bytes: .+"):
        processor(content)


@pytest.mark.parametrize("source", [17, 3.5, pytest.param(object(), id="object")])
def test_objects_that_are_no_video(processor, source):
    with pytest.raises(ValueError, match="is not a video"):
        processor(source)


def test_a_bad_frame_in_a_list_is_named(processor):
    with pytest.raises(ValueError, match=r"frame 2 of 3: .*not a readable image"):
        processor([[picture(), b"broken", picture()]])
    with pytest.raises(ValueError, match="no frames"):
        processor([[]], num_frames=2)


def test_a_file_cut_short(processor, tmp_path):
    pytest.importorskip("av")
    whole = helpers.write_video(tmp_path / "whole.ts", form="mpegts").read_bytes()
    found, _ = read(processor, whole[: len(whole) // 2], num_frames=3)
    assert 20 < found.total < 40
    mp4 = helpers.write_video(tmp_path / "whole.mp4").read_bytes()
    with pytest.raises(ValueError, match="cannot be decoded"):
        processor(mp4[: len(mp4) // 2])  # the index of an mp4 stands at its end


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> bytes:
    """An mp4 whose second half of packets is noise, its index intact."""
    av = pytest.importorskip("av")
    file = helpers.write_video(tmp_path_factory.mktemp("damaged") / "damaged.mp4")
    content = bytearray(file.read_bytes())
    with av.open(str(file)) as container:
        spans = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    rng = np.random.default_rng(0)
    for start, size in spans[30:]:
        content[start : start + size] = rng.bytes(size)
    return bytes(content)


@pytest.mark.filterwarnings("ignore")
def test_bad_frames_are_reported_or_replaced_by_policy(processor, damaged):
    with pytest.raises(ValueError, match=r"frames \[34, 43, 53\] of 60 \(counted from 0\)"):
        processor.read(damaged, num_frames=6)
    found, numbers = read(processor, damaged, num_frames=6, on_bad_frame="nearest")
    assert found.indices == [4, 14, 24, 34, 43, 53]
    assert numbers == [4, 14, 24, 24, 24, 24]
    with pytest.raises(ValueError, match="cannot be decoded"):
        processor.read(damaged, num_frames=3, bound=(1.6, 2.3), on_bad_frame="nearest")


def test_a_playlist_opens_nothing_else(processor, clip, tmp_path):
    segment = helpers.write_video(tmp_path / "segment.ts", form="mpegts")
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(
        "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:5\n#EXT-X-MEDIA-SEQUENCE:0\n"
        f"#EXTINF:2.4,\n{segment.as_uri()}\n#EXT-X-ENDLIST\n"
    )
    script = tmp_path / "list.ffconcat"
    script.write_text(f"ffconcat version 1.0\nfile {clip.name}\n")
    for file in (playlist, script):
        for source in (file, file.read_bytes()):
            with pytest.raises(ValueError, match="cannot be decoded"):
                processor(source)


def test_sizes_are_checked_before_decoding(processor, clip):
    with pytest.raises(ValueError, match="more than max_pixels=1000"):
        processor(clip, max_pixels=1000)


def test_unknown_options_and_missing_files(processor, tmp_path):
    with pytest.raises(TypeError, match=r"unknown options \['num_frame'\]"):
        processor([picture()], num_frame=3)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        processor(tmp_path / "nothing.mp4")
    with pytest.raises(ValueError, match="pass allow_urls=True"):
        processor("https://example.com/a.mp4")


def test_settings_survive_a_file(tmp_path):
    made = video_processing.InternVLChatVideoProcessor(
        size=56, num_frames=3, sampling="middle", timeout=None
    )
    made.save_pretrained(tmp_path)
    again = video_processing.InternVLChatVideoProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == made.to_dict()
    assert again.timeout is None


def test_the_file_of_the_repository():
    content = json.loads((support.ROOT / "video_preprocessor_config.json").read_text())
    place = content.pop("auto_map")["AutoVideoProcessor"]
    assert place == "preprocessor/video_processing_internvl_chat.InternVLChatVideoProcessor"
    assert content == video_processing.InternVLChatVideoProcessor().to_dict()
