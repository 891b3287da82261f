"""python -m pytest tests/test_pictures.py"""

import io
import os
import struct
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_credits, draw_frame, shared
from PIL import Image, ImageDraw, ImageFilter, ImageFont

import identify
from answering import flat, formats
from answering.clip import read_animation
from answering.console import UserError
from answering.flat import is_flat
from answering.model import Identifier
from answering.pictures import IMAGE_SUFFIXES, read_image
from answering.screenshots import find_bars, find_still
from answering.stills import count_passed_over, describe_passed_over, expand, find_films, list_stills


def encoded(image: Image.Image, form: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def differ(rgb: np.ndarray, image: Image.Image) -> float:
    """Mean difference of levels."""
    return float(np.abs(rgb.astype(int) - np.asarray(image.convert("RGB"))).mean())


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return draw_frame(1, 2, 0, (480, 270))


# ------------------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("AVIF", {"quality": 90}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", {"compression": "jpeg", "quality": 95}),
        ("MPO", {"quality": 95}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
    ],
)
def test_formats_are_read(picture, form, options):
    assert differ(read_image(encoded(picture, form, **options)), picture) < 4


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "YCbCr", "LAB", "RGBA", "1", "F", "I;16"])
def test_modes_of_tiff_are_read(picture, mode):
    if mode == "I;16":
        image = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(np.asarray(picture.convert("L")).astype(np.float32) / 255)
    elif mode == "LAB":
        from PIL import ImageCms

        profiles = [ImageCms.createProfile(space) for space in ("sRGB", "LAB")]
        image = ImageCms.profileToProfile(picture, *profiles, outputMode="LAB")
    else:
        image = picture.convert(mode)
    grey = picture.convert("1" if mode == "1" else "L" if mode in ("L", "F", "I;16") else "RGB")
    limit = 30 if mode == "P" else 4  # of a palette that is the same for all pictures
    assert differ(read_image(encoded(image, "TIFF")), grey) < limit


def test_the_first_page_of_a_tiff_is_read(picture):
    pages = encoded(picture, "TIFF", save_all=True, append_images=[Image.new("RGB", (64, 64), "red")])
    assert read_image(pages).shape == (270, 480, 3)


def test_heic_is_read_upright_once(picture):
    heif = pytest.importorskip("pillow_heif", reason="needs pip install pillow-heif")
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right, as a phone held upright writes it
    heif.from_pillow(picture).save(stream, quality=90)
    assert differ(read_image(stream.getvalue()), picture) < 5
    heif.register_heif_opener()
    turned = encoded(picture, "HEIF", quality=90, exif=exif.tobytes())
    rgb = read_image(turned)
    assert rgb.shape == (480, 270, 3)
    assert differ(rgb, picture.transpose(Image.Transpose.ROTATE_270)) < 5


@pytest.mark.parametrize(
    ("data", "module", "command"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "pillow_heif", "pip install pillow-heif"),
        (b"\xff\x0a" + bytes(40), "pillow_jxl", "pip install pillow-jxl-plugin"),
    ],
)
def test_a_package_that_is_missing_is_named(monkeypatch, data, module, command):
    for name in (module, "jxlpy"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=command):
        read_image(data)


@pytest.mark.parametrize(
    ("header", "size"),
    [
        # small 0; height: selector and bits; ratio; width alike, from the lowest bit on
        ([(0, 1), (3, 2), (29999, 30), (0, 3), (3, 2), (39999, 30)], (40000, 30000)),
        ([(1, 1), (4, 5), (5, 3)], (40 * 16 // 9, 40)),
        ([(0, 1), (0, 2), (269, 9), (0, 3), (0, 2), (479, 9)], (480, 270)),
    ],
)
def test_the_size_of_a_jpeg_xl_is_known_before_it_is_decoded(header, size):
    bits = 0
    place = 0
    for value, count in header:
        bits |= value << place
        place += count
    data = b"\xff\x0a" + bits.to_bytes(14, "little")
    assert formats.jxl_size(data) == size
    assert formats.jxl_size(formats.JXL_STARTS[1] + b"\0\0\0\x20jxlc" + data) == size


def test_avif_and_heic_are_told_apart(picture):
    avif = encoded(picture, "AVIF")
    assert not formats.is_heif(avif) and not formats.is_heif(b"") and not formats.is_heif(avif[:10])
    assert formats.is_heif(b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic")


def test_names_of_phones_and_downloads_are_pictures():
    assert {".heic", ".heif", ".avif", ".tif", ".tiff", ".jfif", ".jxl", ".jpg"} <= IMAGE_SUFFIXES


def test_a_bomb_is_refused_by_its_size_before_it_is_decoded(monkeypatch):
    avif = bytearray(encoded(Image.new("RGB", (64, 64)), "AVIF"))
    place = avif.index(b"ispe") + 8
    avif[place : place + 8] = struct.pack(">II", 30000, 30000)
    with pytest.raises(UserError) as error:
        read_image(bytes(avif))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="megapixels"):
        read_image(encoded(Image.new("L", (9000, 6000)), "TIFF", compression="tiff_adobe_deflate"))


# ----------------------------------------------------------------------------------------- files that lack their end


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("draft", [None, 100])
def test_a_picture_that_lacks_its_last_bytes_is_read_as_far_as_it_goes(picture, form, draft):
    data = encoded(picture, form)
    whole = read_image(data, draft=draft)
    cut = read_image(data[: int(len(data) * 0.97)], draft=draft)
    assert cut.shape == whole.shape
    rows = int(len(whole) * 0.88)
    assert (np.abs(cut[:rows].astype(int) - whole[:rows]).max(axis=(1, 2)) < 12).mean() > 0.95
    for share in (0.5, 0.2):
        with pytest.raises(UserError, match="damaged or cut off"):
            read_image(data[: int(len(data) * share)], draft=draft)


def test_a_grey_jpeg_and_one_in_bars_may_lack_their_end(picture):
    barred = Image.new("RGB", (480, 350))
    barred.paste(picture, (0, 40))
    for image in (picture.convert("L"), picture.convert("CMYK"), barred):
        data = encoded(image, "JPEG", quality=90)
        assert read_image(data[:-40]).shape == (image.height, image.width, 3)


# ------------------------------------------------------------------------------------------------------- animations


def fade(picture: Image.Image, black: int = 5, shown: int = 4) -> list[Image.Image]:
    """Black frames, then a picture that moves."""
    frames = [Image.new("RGB", picture.size) for _ in range(black)]
    return frames + [picture.rotate(angle) for angle in range(shown)]


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "AVIF"])
def test_an_animation_is_asked_by_its_first_frame_that_is_not_flat(picture, form):
    first, *rest = fade(picture)
    data = encoded(first, form, save_all=True, append_images=rest, duration=80)
    assert differ(read_image(data), picture) < 12
    frames = read_animation(data, most=3).pictures
    assert len(frames) == 3 and not any(is_flat(rgb) for rgb in frames)


def test_an_animation_of_nothing_is_its_first_frame(picture):
    first, *rest = fade(picture, 6, 0)
    data = encoded(first, "GIF", save_all=True, append_images=[*rest, Image.new("RGB", picture.size, (3, 3, 3))])
    assert not read_image(data).any() and read_animation(data, most=4).pictures == []
    assert read_animation(encoded(picture, "PNG"), most=4) is None


def test_an_animation_that_is_cut_off_keeps_what_it_has(picture):
    first, *rest = fade(picture, 1, 30)
    data = encoded(first, "GIF", save_all=True, append_images=rest, duration=80)
    assert read_animation(data[: len(data) // 2], most=4).pictures


# ------------------------------------------------------------------------------------------------- too little in it

COLOURS = [
    ("black", "white"),
    ("white", "black"),
    ("#101060", "#ffe040"),
    ("#f0ece0", "#202020"),
    ("#600c10", "white"),
    ("#212121", "#dddddd"),
]


@pytest.mark.parametrize("colours", COLOURS)
@pytest.mark.parametrize("size", [(400, 225), (854, 480), (1920, 804), (640, 480)])
@pytest.mark.parametrize("lines", [1, 3, 9, 16])
def test_cards_and_credits_are_flat(lines, size, colours):
    card = draw_credits(lines, size=size, colours=colours, seed=lines)
    assert is_flat(np.asarray(card))
    assert is_flat(read_image(encoded(card, "JPEG", quality=75)))
    grain = np.random.default_rng(1).normal(0, 5, (size[1], size[0], 1))
    assert is_flat((np.asarray(card) + grain).clip(0, 255).astype(np.uint8))


def test_a_slow_change_of_the_background_is_still_a_card():
    card = np.asarray(draw_credits(9, size=(960, 540), colours=("#404048", "white"))).astype(float)
    card *= np.linspace(1.2, 0.6, 540)[:, None, None]
    assert is_flat(card.clip(0, 255).astype(np.uint8))


def test_intertitles_with_a_frame_around_them_are_flat():
    card = draw_credits(4, size=(640, 480), colours=("#141414", "#e1e1e1"))
    ImageDraw.Draw(card).rectangle((20, 20, 619, 459), outline="#c8c8c8", width=4)
    assert is_flat(np.asarray(card))


def test_cards_in_other_alphabets_are_flat():
    card = Image.new("RGB", (960, 540))
    draw = ImageDraw.Draw(card)
    try:
        font = ImageFont.truetype("DejaVuSans.ttf", 26)
    except OSError:
        pytest.skip("needs the font DejaVu")
    for line, text in enumerate(["Режиссёр Анна Щукина", "Μουσική Γιώργος", "إخراج محمد", "Camera Zoë Núñez"] * 3):
        draw.text((480, 30 + 40 * line), text, "white", font, anchor="ma")
    assert is_flat(np.asarray(card))


def test_black_fades_and_one_colour_are_flat():
    for level in (0, 8, 20, 128, 255):
        assert is_flat(np.full((270, 480, 3), level, np.uint8))
    scene = np.asarray(draw_frame(2, 1, 0, (480, 270)))
    assert is_flat((scene * 0.08).astype(np.uint8))


def draw_scenes() -> dict[str, Image.Image]:
    """Scenes that have little in them, and something."""
    size = (960, 540)
    scenes = {"frame": draw_frame(3, 1, 0, size), "grey": draw_frame(0, 1, 0, size).convert("L").convert("RGB")}
    scenes["dark"] = draw_frame(4, 2, 0, size).point([round(value * 0.25) for value in range(256)] * 3)
    figure = Image.new("RGB", size, "#e8b070")
    draw = ImageDraw.Draw(figure)
    draw.ellipse((380, 120, 520, 270), "black")
    draw.rectangle((350, 250, 550, 540), "black")
    scenes["silhouette"] = figure
    drawn = Image.new("RGB", size, "#9ad0f0")
    draw = ImageDraw.Draw(drawn)
    draw.rectangle((0, 380, 960, 540), "#60a050")
    draw.ellipse((300, 150, 560, 420), "#f0d0b0", outline="black", width=4)
    scenes["drawn"] = drawn
    snow = Image.new("RGB", size, "#dde2e8")
    draw = ImageDraw.Draw(snow)
    draw.polygon([(0, 300), (400, 180), (960, 340), (960, 540), (0, 540)], "#c0c8d4")
    draw.rectangle((440, 200, 520, 400), "#303038")
    scenes["snow"] = snow
    subtitled = draw_frame(1, 4, 0, size).filter(ImageFilter.GaussianBlur(6))
    ImageDraw.Draw(subtitled).text((480, 490), "We can't stay here.", "white", ImageFont.load_default(30), anchor="ma")
    scenes["subtitled"] = subtitled
    barred = Image.new("RGB", size)
    barred.paste(draw_frame(2, 3, 0, (960, 402)), (0, 69))
    scenes["barred"] = barred
    return scenes


@pytest.mark.parametrize("name", list(draw_scenes()))
def test_scenes_are_not_flat(name):
    assert not is_flat(np.asarray(draw_scenes()[name]))


def test_few_real_frames_are_flat():
    files = (
        sorted(shared("frames", "stills").rglob("*.jpg"))[::2] + sorted(shared("frames", "open").rglob("*.jpg"))[::2]
    )
    files += sorted(shared("frames", "episodes", "Arrested Development (2003)").glob("*.jpg"))[:200:5]
    named = [file for file in files if is_flat(read_image(file, draft=448))]
    assert len(named) <= 0.01 * len(files), named


class Stub:
    """A model that counts the frames that it sees, and names them all."""

    def __init__(self):
        self.asked = 0

    def __call__(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        self.asked += len(batch)
        return {"probabilities": np.array([[0.9, 0.1]]), "known": np.array([0.99]), "embedding": np.ones((1, 4))}


@pytest.fixture
def sure(exported) -> Identifier:
    """An Identifier that names the first film whatever it sees."""
    identifier = Identifier(exported / "model.onnx", runtime="onnxruntime")
    identifier.run = Stub()
    identifier.classes = ["Film A", "Film B"]
    identifier.contract.decision.update(movie=0.5, shortlist=0.3)
    return identifier


def test_a_flat_picture_is_unknown_whatever_the_model_says(sure, picture):
    card = np.asarray(draw_credits(9))
    for flat_one in (card, np.zeros((200, 300, 3), np.uint8), [card, card]):
        answer = sure.identify(flat_one)
        assert (answer.kind, answer.candidates, answer.reason) == ("unknown", [], "too little in the picture")
        assert answer.as_dict()["reason"] == answer.reason
        assert identify.format_answer(answer, True) == "I don't know this film: too little in the picture"
    assert sure.run.asked == 0
    answer = sure.identify([card, np.asarray(picture), card])
    assert answer.kind == "movie" and sure.run.asked == 1
    assert answer.reason is None and "reason" not in answer.as_dict()
    assert sure.look([card]).reason and sure.run.asked == 1


def test_the_page_and_the_library_look_at_flat_pictures_with_the_same_numbers():
    code = (Path(__file__).parent.parent / "web" / "worker.js").read_text(encoding="utf-8")
    for number in (flat.LONG_SIDE, flat.CELLS, flat.STEP, flat.FAR, flat.NEAR, flat.COVERED, flat.MOST_COVERED):
        assert str(number) in code


# ------------------------------------------------------------------------------------------ reels and players


def overlap(box, wanted) -> float:
    """Intersection over union."""
    if box is None:
        return 0.0
    left, top, right, bottom = (max, max, min, min)
    inner = (left(box[0], wanted[0]), top(box[1], wanted[1]), right(box[2], wanted[2]), bottom(box[3], wanted[3]))
    areas = [max(0, b[2] - b[0]) * max(0, b[3] - b[1]) for b in (inner, box, wanted)]
    return areas[0] / (areas[1] + areas[2] - areas[0])


@pytest.mark.parametrize("size", [(720, 1280), (1080, 1920), (720, 900)])
def test_the_still_in_a_reel_with_blurred_sides_is_found(picture, size):
    width, height = size
    still = draw_frame(4, 2, 0, (width, width * 9 // 16))
    reel = still.resize((height * 16 // 9, height)).crop((0, 0, width, height))
    reel = reel.filter(ImageFilter.GaussianBlur(width // 24))
    top = (height - still.height) // 2
    reel.paste(still, (0, top))
    ImageDraw.Draw(reel).text(
        (width // 2, top // 2), "best scene ever?", "white", ImageFont.load_default(width // 18), "mm"
    )
    rgb = read_image(encoded(reel, "JPEG", quality=80))
    assert overlap(find_still(rgb), (0, top, width, top + still.height)) > 0.9


@pytest.mark.parametrize("ground", ["#28282c", "#ececec"])
def test_the_still_in_a_players_window_is_found(ground):
    window = Image.new("RGB", (1280, 800), ground)
    window.paste(draw_frame(4, 2, 0, (1280, 680)), (0, 40))
    draw = ImageDraw.Draw(window)
    draw.text((14, 12), "film.mkv - player", "#888888", ImageFont.load_default(15))
    draw.rectangle((60, 735, 1220, 740), "#888888")
    for button in range(6):
        draw.rectangle((14 + 40 * button, 755, 36 + 40 * button, 777), outline="#888888")
    assert overlap(find_still(np.asarray(window)), (0, 40, 1280, 720)) > 0.9


def test_plain_frames_are_not_cropped_by_edges():
    for film in range(5):
        for shot in range(4):
            assert find_still(np.asarray(draw_frame(film, shot, 0, (640, 360)))) is None


# ------------------------------------------------------------------------------------------------- folders of stills


def save(place: Path, seed: int = 0) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    draw_frame(seed % 5, seed, 0).save(place, "JPEG")


def test_what_systems_leave_in_folders_is_no_frame_and_no_film(tmp_path):
    save(tmp_path / "Film A (2001)" / "a.jpg")
    for name in ("Film A (2001)/._a.jpg", "__MACOSX/Film A (2001)/._a.jpg", "Film A (2001)/@eaDir/a.jpg"):
        save(tmp_path / name)
    save(tmp_path / ".hidden" / "b.jpg")
    for name in (".DS_Store", "Thumbs.db", "Film A (2001)/Thumbs.db", "Film A (2001)/desktop.ini"):
        (tmp_path / name).write_bytes(b"x")
    films = find_films([tmp_path])
    assert list(films) == ["Film A (2001)"]
    assert [still.file for still in list_stills(films["Film A (2001)"])] == ["a.jpg"]
    assert expand([str(tmp_path)]) == [str(tmp_path / "Film A (2001)" / "a.jpg")]


def test_what_is_passed_over_is_counted_on_one_line(tmp_path):
    save(tmp_path / "Film A (2001)" / "a.jpg")
    (tmp_path / "Film A (2001)" / "frames.jsonl").touch()
    for name in ("a.txt", "b.TXT", "c.mkv", "README", ".DS_Store"):
        (tmp_path / "Film A (2001)" / name).touch()
    found = count_passed_over([tmp_path])
    assert found == {".txt": 2, ".mkv": 1, "without a suffix": 1, "hidden or of the system": 1}
    line = describe_passed_over([tmp_path])
    assert line.startswith("passed over in folders: 2 .txt") and "\n" not in line
    assert describe_passed_over([tmp_path / "Film A (2001)" / "a.jpg"]) is None


@pytest.mark.parametrize("name", ["train", "test", "val", "valid", "archive", "images", "data", "dataset", "Train"])
def test_parts_of_data_sets_are_no_films(tmp_path, name):
    save(tmp_path / "set" / name / "Film A (2001)" / "a.jpg")
    with pytest.raises(UserError, match=f"did you mean .*{name}") as error:
        find_films([tmp_path / "set"])
    assert error.value.code == 2 and "\n" not in str(error.value)
    assert list(find_films([tmp_path / "set" / name])) == ["Film A (2001)"]
    save(tmp_path / "films" / name / "1.jpg")
    assert list(find_films([tmp_path / "films"])) == [name]


def test_the_folder_that_was_meant_may_lie_deeper(tmp_path):
    for part in ("train", "test"):
        save(tmp_path / "archive" / part / "Film A (2001)" / "1.jpg")
    for place in (tmp_path, tmp_path / "archive"):
        with pytest.raises(UserError, match=r"did you mean \S*archive/train or \S*archive/test"):
            find_films([place])


def test_a_title_is_one_however_its_accents_are_written(tmp_path):
    composed = unicodedata.normalize("NFC", "Amélie (2001)")
    decomposed = unicodedata.normalize("NFD", composed)
    save(tmp_path / composed / "1.jpg")
    save(tmp_path / decomposed / "2.jpg", 1)
    if len(os.listdir(tmp_path)) == 1:
        pytest.skip("this file system knows one of the two names alone")
    films = find_films([tmp_path])
    assert list(films) == [composed]
    stills = list_stills(films[composed])
    assert len(stills) == 2 and all(still.path.exists() for still in stills)
    assert find_films([tmp_path / decomposed]).keys() == {composed}


def test_links_to_folders_are_followed_once(tmp_path):
    save(tmp_path / "store" / "8f3a" / "1.jpg")
    films = tmp_path / "films"
    films.mkdir()
    try:
        (films / "Film A (2001)").symlink_to(tmp_path / "store" / "8f3a")
    except OSError:
        pytest.skip("this system makes no links")
    (films / "Film B again").symlink_to(tmp_path / "store" / "8f3a")
    save(films / "Film C (2003)" / "1.jpg")
    (films / "Film C (2003)" / "up").symlink_to(films)
    found = find_films([films])
    assert list(found) == ["Film A (2001)", "Film C (2003)"]  # named by the link
    assert [still.file for still in list_stills(found["Film C (2003)"])] == ["1.jpg"]
    assert [still.file for still in list_stills(found["Film A (2001)"])] == ["1.jpg"]


def test_black_bars_of_a_card_do_not_hide_it():
    card = Image.new("RGB", (960, 540))
    card.paste(draw_credits(9, size=(960, 400), colours=("#203040", "white")), (0, 70))
    assert find_bars(np.asarray(card))[1] > 60 and is_flat(np.asarray(card))
