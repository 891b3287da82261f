"""Render films that never were, to try and measure the whole pipeline on: any number, offline, the same every time.

python demo/films.py --films 5 --frames 120 --out data/raw      # some seconds on a laptop
python demo/films.py --films 257 --frames 330 --out data/raw    # the size of the original's collection
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the scripts of the top level

from answering.console import one_line_errors

# worlds: nouns | far ridges | things that stand about | floors | weather | bodies | hats
WORLDS = """
Alley Alibi Verdict|towers|house tank hydrant lamppost|bricks checks|rain fog|coat suit dress|fedora cap bowler
Harbor Tide Pier|sea hills|mast lighthouse crane house|bricks waves|fog rain|coat bulky|cap beanie southwester
Pines Wolves Grove|pines hills|pine birch bare oak|noise dots|fog dust|cloak tunic poncho|hood beanie antlers
Canyon Mesa Rider|mesa dunes|cactus stones windmill tank|noise waves|dust none|poncho suit coat|cowboy straw bandana
Orbit Colony Voyager|domes mesa|pod dish rocket crystal|hexes key|none dust|bulky armour|helmet antenna none
Winter Glacier Thaw|ridge|pine stones house bare|noise waves|snow|bulky coat cloak|beanie hood ushanka
Abbey Crypt Psalm|spires hills|cross arch bare statue|checks key|fog rain|robe cloak dress|hood mitre none
Hotel Waltz Duchess|domes towers|column statue house|checks sunray|none snow|suit dress|tophat pillbox none
Arcade Circuit Proxy|towers spires|house sign pylon|grid key|rain|coat armour suit|visor hood mohawk
Harvest Barn Orchard|hills|silo windmill oak house|stripes|dust none|tunic dress suit|straw bandana cowboy
Foundry Strike Engine|towers mesa|chimney derrick tank|grid|embers fog|bulky suit tunic|hardhat cap beanie
Temple Idol Monsoon|hills ridge|palm totem ziggurat willow|scallops|rain fog|tunic robe poncho|feathers turban straw
Lawn Summer Picnic|hills towers|house poplar oak car|stripes grid|none dust|suit dress tunic|none cap bun
Carousel Circus Clown|hills domes|tent wheel lamppost|sunray diamonds|embers none|robe tunic dress|tophat jester pillbox
Railway Express Porter|ridge towers|wagon pylon signal|stripes grid|snow rain|coat suit dress|kepi bowler fedora
Samurai Lantern Heron|ridge pines|gate temple bamboo|scallops|snow fog|robe armour|straw horns topknot
Moons Comet Spore|domes dunes|mushroom bulb crystal|dots hexes|embers dust|robe cloak bulky|pointed antenna mitre
Regiment Trench Bugle|ridge hills|bare stones gun|noise stripes|fog embers|coat tunic armour|hardhat kepi horns
""".strip().splitlines()
ADJECTIVES = (
    "Copper Silent Crimson Hollow Last Velvet Iron Broken Amber Second Golden Secret Blind Scarlet Hidden Quiet"
)
# a cell of every pattern: a and b run from 0 to 1 across it
PATTERNS = {
    "stripes": lambda a, b: a < 0.5,
    "checks": lambda a, b: (a < 0.5) ^ (b < 0.5),
    "grid": lambda a, b: (a < 0.12) | (b < 0.12),
    "dots": lambda a, b: np.hypot(a - 0.5, b - 0.5) < 0.3,
    "diamonds": lambda a, b: abs(a - 0.5) + abs(b - 0.5) < 0.36,
    "waves": lambda a, b: (b + 0.16 * np.sin(2 * np.pi * a)) % 1 < 0.5,
    "bricks": lambda a, b: ((b * 2) % 1 < 0.16) | ((a + 0.5 * (b > 0.5)) % 1 < 0.08),
    "scallops": lambda a, b: abs(np.hypot(a - 0.5, b) - 0.42) < 0.09,
    "herringbone": lambda a, b: ((b + np.where(a < 0.5, a, -a)) * 2) % 1 < 0.5,
    "sunray": lambda a, b: (np.arctan2(b - 0.5, a - 0.5) / (2 * np.pi) * 10) % 1 < 0.5,
    "key": lambda a, b: (np.maximum(abs(a - 0.5), abs(b - 0.5)) * 6) % 1 < 0.5,
    "hexes": lambda a, b: np.maximum(abs(a - 0.5), abs(a - 0.5) / 2 + abs(b - 0.5)) > 0.42,
    "noise": lambda a, b: cv2.resize(noise_tile(), a.shape[::-1]),
}
# hours and weathers that every film shares: zenith, horizon, key light, shadow, lamp
LOOKS = """
70 125 190 200 215 225 255 245 225 50 62 90 255 225 160  85 105 150 252 190 110 255 205 130 62 48 62 255 190 90
45 42 95 240 120 85 245 150 120 36 28 58 255 160 80      16 28 70 95 125 175 140 160 210 14 20 46 255 190 110
5 9 26 30 46 78 105 125 175 5 8 20 255 205 130           130 140 148 190 194 192 205 208 205 48 54 60 250 230 190
60 90 80 165 180 140 205 215 170 22 40 34 250 240 150    50 14 30 200 70 50 240 120 90 32 8 16 255 120 70
24 10 50 150 50 130 205 110 200 18 8 38 90 240 255       14 60 76 110 180 175 160 220 210 8 34 44 255 170 90
60 38 20 190 130 70 255 190 115 34 20 14 255 205 120     150 150 185 250 205 200 250 220 210 70 60 84 255 210 150
30 34 40 92 96 100 165 170 175 14 16 20 240 235 215      20 40 24 90 130 70 190 210 120 10 22 14 240 255 140
"""
# framings: zoom of the set, its blur, height of a figure in frame heights, figures at most
FRAMINGS = [(0.85, 0.35, 0.42, 3), (1.1, 0.45, 0.68, 2), (1.45, 0.8, 1.4, 2), (1.9, 1.1, 2.6, 1)]
PARTICLES = {"rain": (170, 16, 1), "snow": (150, 0, 3), "dust": (60, 0, 2), "embers": (40, 0, 3)}  # how many, px, px
HEIGHT, MARGIN = 256, 14  # px; the margin is room for the camera to move


@cache
def shapes() -> dict[str, list[np.ndarray]]:
    """The drawings of silhouettes.svg by id: polygons [n, 2], x from the middle, y up from the foot, in sizes."""
    paths = ElementTree.parse(Path(__file__).with_name("silhouettes.svg")).iter("{http://www.w3.org/2000/svg}path")
    found = {path.get("id"): path.get("d").replace("z", "").split("M")[1:] for path in paths}
    return {name: [np.float64(p.split()).reshape(-1, 2) / (100, -100) for p in parts] for name, parts in found.items()}


@cache
def noise_tile() -> np.ndarray:
    """Clouds: float32 [256, 256] in 0..1, the same for every film, wraps around."""
    rng = np.random.default_rng(0)
    grids = (np.pad(rng.random((k, k), np.float32), k // 4, mode="wrap") for k in (4, 8, 16, 32, 64))
    tile = sum(cv2.resize(g, (384, 384), interpolation=cv2.INTER_CUBIC)[64:320, 64:320] / len(g) ** 0.8 for g in grids)
    return (tile - tile.min()) / (tile.max() - tile.min())


@cache
def pattern(kind: str, cell: int, turn: int = 0) -> np.ndarray:
    """A tile of 2x2 cells of a pattern, uint8 [2 cell, 2 cell], antialiased."""
    a, b = np.meshgrid(*[(np.arange(8 * cell) + 0.5) / (4 * cell) % 1] * 2)
    full = np.float32(PATTERNS[kind](*((b, a) if turn else (a, b))))
    return np.uint8(255 * cv2.resize(full, (2 * cell, 2 * cell), interpolation=cv2.INTER_AREA))


def print_on(img: np.ndarray, kind: str, cell: float, turn: int, amount: float) -> None:
    """Prints a pattern on an image in place: its light parts lift the colour, its dark parts sink it."""
    (h, w), tile = img.shape[:2], pattern(kind, max(3, round(cell)), turn)
    lut = np.uint8(np.clip(200 * (1 + amount * (np.arange(256) / 255 - 0.5)), 0, 255))
    factor = np.tile(lut[tile], (h // len(tile) + 1, w // len(tile) + 1))[:h, :w]
    img[..., :3] = cv2.multiply(img[..., :3].copy(), cv2.cvtColor(factor, cv2.COLOR_GRAY2RGB), scale=1 / 200)


def stamp(img: np.ndarray, shape: str | list[np.ndarray], x: float, y: float, size, colour: tuple) -> None:
    """Draws a silhouette with its foot at (x, y); size in px, or (width, height)."""
    for polygon in shapes()[shape] if isinstance(shape, str) else shape:
        points = np.array([x, y]) + polygon * size * np.array([1, -1])
        cv2.fillPoly(img, [np.int32(points * 16)], colour, cv2.LINE_AA, 4)


def emblem(rng: np.random.Generator) -> list[np.ndarray]:
    """A sign of the film's own: a star of 2-7 mirrored arms, perhaps with a hole, or a crescent."""
    n, radii = int(rng.integers(2, 8)), np.r_[0.5, rng.uniform(0.15, 0.5, 3)]
    around = np.tile(np.r_[radii, radii[-2:0:-1]], n) if rng.random() < 0.8 else np.full(25, 0.5)  # or a disc
    angle = np.linspace(0, 2 * np.pi, len(around), endpoint=False) + np.pi / 2
    path = np.stack([around * np.cos(angle), around * np.sin(angle)], 1)
    if rng.random() < 0.6:  # one path around both edges: the fill is even-odd
        hole = path[::-1] * 0.45 if len(around) % 6 == 0 else path[::-1] * 0.75 + (0.12, 0)
        path = np.concatenate([path, path[:1], hole, hole[:1]])
    return [path + np.array([0, 0.5])]


def film_design(index: int, seed: int = 13) -> SimpleNamespace:
    """A film's title and production design, from (seed, index) alone. Titles are unique up to index 863."""
    block, which = divmod(index, len(WORLDS))
    nouns, ridges, things, floors, weather, bodies, hats = (column.split() for column in WORLDS[which].split("|"))
    names = [f"The {adjective} {noun}" for adjective in ADJECTIVES.split() for noun in nouns]
    name = np.random.default_rng([seed, which, 2]).permutation(names)[block % len(names)]
    rng = np.random.default_rng([seed, index, 3])
    uniform = rng.uniform

    def pick(names, n=None):  # from a list, or from the drawings of a sort
        names = [name for name in shapes() if name.startswith(names)] if isinstance(names, str) else names
        return rng.choice(names, n, replace=False).tolist()

    aspect, boxed = pick([1.33, 1.37, 1.66, 1.78, 1.85, 2.0, 2.2, 2.35, 2.39]), rng.random() < 0.35
    hues = rng.permutation(np.array([[1, 0.62, 0.45], [0.5, 0.72, 0.55], [0.5, 0.6, 0.85], [0.85, 0.78, 0.6]]))
    albedo = (0.3 + 0.5 * rng.random((4, 1))) * (0.45 + 0.95 * (hues * uniform(0.85, 1.15, (4, 3)) - 0.25))
    cloth, wall = pick([kind for kind in PATTERNS if kind != "noise"], 2)
    return SimpleNamespace(
        index=index, seed=seed, title=f"{name} ({rng.integers(1948, 2025)})",
        # of the picture and of the frame: a frame that is wider or narrower than the picture has bars
        aspect=aspect, container=16 / 9 if boxed and abs(aspect - 16 / 9) > 0.15 else aspect,
        # sets
        ridges=ridges, floor=pick(floors), weather=weather, wall=wall, window=pick("window-"), roof=pick("roof-"),
        things=[*pick(things, 2), pick(["house", "column", "stones", "pylon", "bare", "oak"])], orb=pick("orb-"),
        sets=rng.dirichlet([0.5, 0.6, 2.0]), house=uniform([0.3, 0.6], [0.9, 1.5]), storey=uniform(0.09, 0.18),
        lit=uniform(0.15, 0.9), cell=uniform(0.08, 0.18), turn=int(rng.integers(2)), relief=uniform(0.6, 1.0),
        wet=rng.choice([0, 0, 0.5, 0.8]), emblem=emblem(rng), emblem_size=uniform(0.16, 0.34), fringe=uniform(0, 0.6),
        orb_size=uniform(0.08, 0.4), cloud=uniform(0, 0.75), cloud_long=rng.integers(60, 256), haze=uniform(0.3, 1.0),
        # cast
        bodies=pick(bodies, 2), hats=pick(hats, 2), arms=pick("arm-", 4), cloth=cloth, cloth_cell=uniform(0.04, 0.08),
        head=uniform([0.041, 0.06], [0.075, 0.085]), hair=pick("hair-", 2), coats=rng.integers(0, 4, 4),
        eyes=pick("rim-"), badge=rng.random() < 0.7, light=uniform(0.75, 1.5), skin=uniform(0.25, 0.85, 4),
        build=uniform(0.75, 1.25, 4), tall=uniform(0.8, 1.12, 4), rim=uniform(0.2, 1.0),
        # lens, light and stock
        albedo=albedo.astype(np.float32), looks=rng.permutation(14)[:5], saturation=uniform(0.6, 1.2),
        mono=rng.random() < 0.06, horizon=uniform(0.42, 0.72), gradient=uniform(0.5, 2.2), blur=uniform(0.3, 1.3),
        vignette=uniform(0.1, 0.7), vignette_power=uniform(1.5, 5), halation=uniform(0.2, 1.0),
        contrast=uniform(0, 0.7), scan=rng.choice([0, 0, 0.2]), streak=rng.choice([0, 0, 1]),
        foreground=pick("front-"), handheld=uniform(0, 2.5), grain=uniform(2, 9), grain_size=uniform(1, 2.4),
        lift=uniform(0, 18, 3), gain=uniform(0.9, 1.08, 3),
    )  # fmt: skip


class Shot:
    """What of a shot need not be drawn again for each frame: set, glow, actors, foreground, weather (w x h px)."""

    def __init__(self, film: SimpleNamespace, number: int, w: int, h: int) -> None:
        self.film, self.w, self.h = film, w, h
        self.rng = rng = np.random.default_rng([film.seed, film.index, 4, number])
        self.img, self.glow = np.zeros((2, h, w, 3), np.uint8)
        self.side = int(rng.choice([-1, 1]))  # where the light comes from
        self.set_light()
        zoom, blur, size, most = FRAMINGS[rng.integers(len(FRAMINGS))]
        self.zoom, size = zoom * rng.uniform(0.85, 1.2), size * rng.uniform(0.88, 1.12)
        self.hy = int(h * np.clip(film.horizon + rng.normal(0, 0.03), 0.3, 0.85))  # row of the horizon
        place = str(rng.choice(["tunnel", "wall", "outdoors"], p=film.sets))
        self.outdoors() if place == "outdoors" else self.indoors(place)
        weather = str(rng.choice(film.weather)) if place == "outdoors" else "none"
        self.fall = self.particles(weather) if weather in PARTICLES else None
        self.bleed = self.develop(weather == "fog", 0.2 + film.blur * blur)
        count = int(rng.integers(1, most + 1))
        slots = np.linspace(0, 1, count + 2)[1:-1] + rng.uniform(-0.12, 0.12, count)
        self.actors = []  # sprite, x, y, (walk, sway), phase
        for who, slot in zip(rng.permutation(4).tolist(), slots, strict=False):
            tall = size * h * film.tall[who] ** (1 if size < 1 else 0.4)
            sprite, top = self.figure(who, tall, 0.3 if size < 0.5 else 0.0)
            feet = np.clip(self.hy + h * 0.2, tall * 1.16, h * 0.98) if size < 1 else h * 0.4 + tall * 0.92
            place = slot * w - sprite.shape[1] / 2, feet - top
            self.actors.append((sprite, *place, rng.uniform(-1, 1, 2), rng.uniform(0, 6)))
        self.front = self.foreground() if rng.random() < film.fringe else None
        self.drift, self.exposure = rng.uniform(-1, 1, 2) * (2.2, 0.8), rng.uniform(0.88, 1.18)

    def set_light(self) -> None:
        """Hour, weather and exposure: zenith, horizon, key, shadow, lamp, each float32 [3] in 0..255."""
        looks, rng = np.array(LOOKS.split(), np.float32).reshape(-1, 5, 3), self.rng
        a, b = looks[rng.choice(self.film.looks)], looks[rng.integers(len(looks))]
        colours = (a + (b - a) * rng.uniform(0, 0.3)) * rng.uniform(0.85, 1.15) * rng.uniform(0.94, 1.06, 3)
        grey = colours.mean(1, keepdims=True)
        colours = np.clip(grey + (colours - grey) * self.film.saturation, 0, 255).astype(np.float32)
        self.zenith, self.horizon, self.key, self.shadow, self.lamp = colours

    def paint(self, albedo: np.ndarray, depth: float = 0.0, light: float = 1.0) -> tuple[float, ...]:
        """RGB of a surface: shadow and key light on its albedo, lost in the haze with depth 0..1."""
        lit = self.shadow * 0.5 + self.key * albedo * (light * 1.15)
        return tuple(np.clip(lit + (self.horizon - lit) * min(0.95, depth * self.film.haze), 0, 255).tolist())

    def draw(self, shape, x: float, y: float, size, colour, glow: float = 0.0) -> None:
        """Stamps a silhouette on the set, and where it glows on what will bleed."""
        for img, light in ((self.img, 1.0), (self.glow, glow)):
            stamp(img, shape, x, y, size, tuple((np.array(colour) * light).tolist()))

    def sky(self, hy: int) -> None:
        """From zenith to horizon, with stars or a sun, and clouds."""
        film, w, h, rng = self.film, self.w, self.h, self.rng
        t = np.clip(np.arange(h) / max(hy, 1), 0, 1)[:, None, None] ** film.gradient
        self.img[:] = self.zenith * (1 - t) + self.horizon * t
        if self.zenith.mean() < 60:
            for x, y, s in rng.random((90, 3)) * (w, hy, 200):
                cv2.circle(self.img, (int(x), int(y)), int(s > 190), (s + 50,) * 3, -1, cv2.LINE_AA)
        x, y, size = w * (0.5 + self.side * rng.uniform(0.12, 0.4)), hy * rng.uniform(0.4, 1), film.orb_size * h
        self.draw(film.orb, x, y, size, np.minimum(self.key * 1.15, 255), 1.0)
        clouds = cv2.resize(np.roll(noise_tile(), rng.integers(256, size=2), (0, 1))[:, : film.cloud_long], (w, h))
        veil = np.clip((clouds - 0.95 + 0.6 * film.cloud) * 3, 0, 0.75)[..., None]
        self.img[:] = self.img + (self.horizon * 0.75 + self.key * 0.25 - self.img) * veil

    def floor(self, hy: int) -> None:
        """The ground from row hy down, its pattern in perspective; wet ground mirrors what stands above."""
        film, w, h, rows = self.film, self.w, self.h, np.arange(hy, self.h)
        near, far = np.float32(self.paint(film.albedo[1])), np.float32(self.paint(film.albedo[1], 0.8))
        t = (1 - (rows - hy) / (h - hy))[:, None, None] ** 2
        z = 1 / ((rows - hy) / h + 0.04)
        tile, scale = pattern(film.floor, 48, film.turn), 26 / self.zoom
        u = ((np.arange(w) - w / 2)[None] / h * z[:, None] * scale).astype(int) % 96
        v = (z * scale * 3.5 + self.rng.integers(96)).astype(int)[:, None] % 96
        fade = film.relief * np.clip((rows - hy) / (0.3 * h), 0, 1)[:, None]
        ground = (far * t + near * (1 - t)) * (1 + fade * (tile[v, u] / 255 - 0.5))[..., None]
        if film.wet:
            ripple = (3 * np.sin(rows * 0.9) * (rows - hy) / h).astype(int)
            mirror = self.img[np.maximum(2 * hy - 1 - rows, 0)[:, None], (np.arange(w)[None] + ripple[:, None]) % w]
            ground = ground * (1 - film.wet * 0.7) + mirror * (film.wet * 0.75)
        self.img[hy:] = np.clip(ground, 0, 255)

    def house(self, x: float, y: float, size: float, depth: float) -> None:
        """A wall with a side in the shade, a roof, and windows: more of them are lit at night."""
        film, rng, paint, light = self.film, self.rng, self.paint, self.rng.uniform(0.5, 0.9)
        wide, tall = size * film.house * (1, rng.uniform(0.6, 1.1))
        self.draw(film.roof, x, y - tall, (wide, wide * 0.8), paint(film.albedo[2], depth, light * 0.5))
        self.draw("block", x, y, (wide, tall), paint(film.albedo[0], depth, light))
        self.draw("block", x - self.side * wide * 0.34, y, (wide * 0.32, tall), paint(film.albedo[0], depth, light / 2))
        step, night = max(7.0, film.storey * size), 0.6 if self.key.mean() < 190 else 0.12
        for wy in np.arange(y - tall + step * 1.05, y - step * 0.25, step)[:14]:
            for wx in np.arange(x - wide / 2 + step * 0.6, x + wide / 2 - step * 0.4, step * 0.95)[:14]:
                lit = rng.random() < film.lit * night
                colour = self.lamp if lit else paint(film.albedo[2] * 0.3, depth)
                self.draw(film.window, wx, wy, (step * 0.55, step * 0.72), colour, float(lit))

    def thing(self, kind: str, x: float, y: float, size: float, depth: float) -> None:
        """A house, or a silhouette with a side in the light."""
        if kind == "house":
            return self.house(x, y, size, depth)
        albedo, light = self.film.albedo[len(kind) % 2 * 2], self.rng.uniform(0.35, 0.7)
        self.draw(kind, x, y, size, self.paint(albedo, depth, light * 0.45))
        self.draw(kind, x + self.side * size * 0.03, y, (size * 0.72, size * 0.97), self.paint(albedo, depth, light))

    def outdoors(self) -> None:
        """Sky, two far ridges, and things in three depths on the ground."""
        film, w, h, hy, rng = self.film, self.w, self.h, self.hy, self.rng
        self.sky(hy)
        for depth, kind in zip((0.85, 0.6), film.ridges * 2, strict=False):
            for x in (np.arange(7) + rng.random(7)) * w / 7:
                size = h * self.zoom**0.5 * rng.uniform([0.5, 0.12], [1.1, 0.36])
                self.draw(kind, x, hy + 2, size, self.paint(film.albedo[2] * 0.7, depth))
        main, other, odd, giants = *film.things, rng.choice([1, 1, 1, 2])
        for depth, lower, size, n in ((0.5, 0.01, 0.26, 6), (0.28, 0.1, 0.42, 4), (0.08, 0.28, 0.66, 3)):
            for x in rng.random(n) * w:
                kind, tall = (main, other, main, odd)[rng.integers(4)], h * self.zoom * size * rng.uniform(0.8, 1.15)
                self.thing(kind, x, hy + lower * (h - hy), tall * giants, depth)
            if n == 6:  # the rest stands on the ground
                self.floor(hy)
        size = h * film.emblem_size * 0.7 * self.zoom**0.6
        self.draw(film.emblem, w * rng.uniform(0.2, 0.8), hy - h * rng.uniform(0, 0.2), size, self.lamp, 1.0)

    def indoors(self, kind: str) -> None:
        """A wall with windows or a tunnel of frames, and signs."""
        film, w, h, hy, rng = self.film, self.w, self.h, self.hy, self.rng
        base = min(h - 8, int(hy + 0.16 * h))  # the foot of the wall
        self.img[:] = self.paint(film.albedo[0], 0.1, 0.3 if kind == "tunnel" else 0.75)
        if kind == "tunnel":
            for k, size in enumerate(2.3 * 0.74 ** np.arange(10) * h * self.zoom**0.3):
                colour = self.paint(film.albedo[k % 2], k / 11, 0.35 + 0.5 * (k % 2)) if k < 9 else self.lamp
                self.draw(film.window, w / 2, hy + size * 0.45, (size * max(1, w / h * 0.75), size), colour, k == 9)
        print_on(self.img, film.wall, film.cell * h * self.zoom**0.7, film.turn, film.relief * 0.9)
        if kind == "wall":
            n, size, foot = int(rng.integers(1, 4)), h * rng.uniform(0.38, 0.6) * self.zoom**0.6, base - h * 0.12
            for x in (np.arange(n) + rng.uniform(0.3, 0.7)) * w / n:
                self.draw(film.window, x, foot, (size * 0.92, size * 1.12), self.paint(film.albedo[2] * 0.5))
                view = self.horizon * 0.75 + self.lamp * 0.2
                self.draw(film.window, x, foot - size * 0.06, (size * 0.76, size), view, 0.35)
        self.floor(base)
        for x in rng.random(3) * w:
            drop, size = h * rng.uniform(0.12, 0.3), h * film.emblem_size * 0.6
            self.draw("block", x, drop, (1.5, drop), self.shadow)
            self.draw(film.emblem, x, drop + size * 0.8, size * self.zoom**0.5, self.lamp, 1.0)
        mark, size = self.paint(film.albedo[3] * 1.25, 0.1), h * film.emblem_size * self.zoom
        self.draw(film.emblem, w * rng.uniform(0.15, 0.85), base - h * 0.2, size, mark)

    def develop(self, fog: bool, blur: float) -> np.ndarray:
        """Fog, light from one side and depth of field over the whole set; the glow that bleeds: RGB uint8 to add."""
        film, w, h = self.film, self.w, self.h
        if fog:
            veil = cv2.resize(noise_tile(), (w, h)) * np.clip((np.arange(h)[:, None] - self.hy * 0.5) / h, 0, 0.5) * 1.5
            self.img[:] = self.img + (self.horizon - self.img) * veil[..., None]
        slope = np.linspace(0.74, 1.16, w, dtype=np.float32)[:: self.side, None]
        small = cv2.resize(self.glow, (w // 4, h // 4), interpolation=cv2.INTER_AREA)
        bleed = cv2.addWeighted(cv2.GaussianBlur(small, (0, 0), 2), 0.5, cv2.GaussianBlur(small, (0, 0), 8), 0.8, 0)
        bleed = cv2.add(bleed, cv2.convertScaleAbs(cv2.blur(small, (w // 6, 1)), alpha=film.streak))  # of the lens
        bleed = cv2.convertScaleAbs(cv2.resize(bleed, (w, h)), alpha=film.halation * 0.5)
        self.img = cv2.add(cv2.GaussianBlur(np.uint8(np.clip(self.img * slope, 0, 255)), (0, 0), blur), bleed)
        return bleed

    def figure(self, who: int, size: float, depth: float) -> tuple[np.ndarray, float]:
        """One of the cast, `size` px tall: premultiplied RGBA uint8, cut at the frame; px from its top to its feet."""
        film, rng, face = self.film, self.rng, int(self.rng.choice([-1, 0, 1]))
        w, h = min(self.w, int(size * 0.9) + 8), min(int(self.h * 1.7), int(size * 1.24) + 4)
        img, top, wide = np.zeros((h, w, 4), np.uint8), size * 1.22, film.build[who]

        def tint(albedo, light=1.0):
            return (*self.paint(albedo * film.light, depth, light), 255)

        def part(shape, x, y, sx, sy, colour):  # in body heights, from between the feet
            stamp(img, shape, w / 2 + x * size, top - y * size, (sx * size, sy * size), colour)

        outer = tint(film.albedo[film.coats[who]], 0.8)
        body, *legs = shapes()[film.bodies[who % 2]]
        part(legs, 0, 0, wide, 1, tint(film.albedo[2] * 0.5, 0.6))
        part([body], 0, 0, wide, 1, outer)
        for side in (-1, 1):
            part(str(rng.choice(film.arms)), 0, 0, side * wide, rng.uniform(0.97, 1.03), outer)
        print_on(img, film.cloth, film.cloth_cell * size, film.turn, 0.9)
        if film.badge:
            part(film.emblem, 0.03 * face, 0.63, 0.1, 0.1, tint(film.albedo[3] * 1.5))
        # head: neck, hair behind, face with a side in shade, hair in front, features, hat
        (rx, ry), skin = film.head, np.float32([0.95, 0.72, 0.58]) * film.skin[who]
        hy, mid, hair = 0.845 + ry, face * rx * 0.25, tint(film.albedo[3] * 0.35, 0.8)
        part("block", 0, 0.8, 0.09, 0.1, tint(skin, 0.55))
        part(film.hair[who % 2], 0, hy, rx, ry, hair)
        part("oval", 0, hy, rx, ry, tint(skin, 0.95))
        part("half", 0, hy, -self.side * rx, ry, tint(skin, 0.55))
        part("fringe", 0, hy + ry * 0.25, rx * 1.04, ry * 0.8, hair)
        dark, white = tint(np.float32([0.05] * 3), 0.3), tint(np.float32([1.0] * 3))
        for layer, x, colour in (("rim", mid, dark), ("white", mid, white), ("pupil", mid * 1.25, dark)):
            part(shapes().get(film.eyes.replace("rim", layer), []), x, hy, rx, rx, colour)
        part("roof-steep", mid * 1.4, hy - ry * 0.35, rx * 0.25, ry * 0.22, tint(skin, 0.5))
        part("oval", mid, hy - ry * 0.58, rx * 0.3, ry * 0.05, tint(skin * np.float32([0.8, 0.4, 0.4]), 0.6))
        hat = tint(film.albedo[film.coats[who] - 1] * 0.8, 0.7)
        part(film.hats[who // 2], 0, hy + ry * 0.42, rx * 2.15, ry * 1.35, hat)
        # light: shade across the body, and a rim on the side of the light
        alpha, shade = img[..., 3:], np.linspace(0.62, 1.12, w, dtype=np.float32)[:: self.side, None]
        rim = cv2.subtract(img[..., 3], np.roll(img[..., 3], -self.side * max(1, round(size * 0.012)), 1))[..., None]
        img[..., :3] = np.minimum(img[..., :3] * shade + rim / 255 * (self.key * film.rim * (1 - depth)), alpha)
        return img, top

    def foreground(self) -> np.ndarray:
        """What stands between the lens and the scene: premultiplied RGBA, out of focus."""
        img, size = np.zeros((self.h, self.w, 4), np.uint8), (self.rng.choice([-1, 1]) * self.h, self.h)
        stamp(img, self.film.foreground, self.w / 2, self.h, size, (*(self.shadow * 0.6).tolist(), 255))
        return cv2.GaussianBlur(img, (0, 0), 2.2)

    def particles(self, kind: str) -> np.ndarray:
        """Rain, snow, dust or embers: RGB uint8 to add, twice the height so that it can fall."""
        count, length, thick = PARTICLES[kind]
        colour = (self.lamp if kind == "embers" else self.key * 0.4 + 20).tolist()
        img = np.zeros((self.h, self.w, 3), np.uint8)
        for x, y, s in self.rng.random((count, 3)) * (self.w, self.h, 1):
            ends = np.int32([[x, y], [x - length / 5, y + length * (0.6 + s)]])
            cv2.line(img, *ends, colour, 1 + int(thick * s * s), cv2.LINE_AA)
        return np.tile(img, (2, 1, 1))


def stock(film: SimpleNamespace, w: int, h: int) -> tuple[np.ndarray, np.ndarray]:
    """What all frames of a film share: vignette and scan lines uint8 [h, w, 3], grain uint8 [h + 64, w + 64, 3]."""
    rng, x, y = np.random.default_rng([film.seed, film.index, 5]), np.arange(w)[None], np.arange(h)[:, None]
    shade = 1 - film.vignette * (((2 * x / w - 1) ** 2 + (2 * y / h - 1) ** 2) / 2) ** (film.vignette_power / 2)
    shade *= 1 - film.scan * (y % 3 == 0)
    small = rng.normal(0, film.grain, np.int32([(h + 64) / film.grain_size, (w + 64) / film.grain_size]))
    grain = np.clip(cv2.resize(small, (w + 64, h + 64)) + int(3 * film.grain), 0, 255)
    return np.uint8(255 * shade[..., None] * np.ones(3)), np.uint8(grain[..., None] * np.ones(3))


def frame_size(film: SimpleNamespace) -> tuple[int, int, int, int]:
    """Frame width, frame height, picture width, picture height in px; 2.35 is the original's 600x256."""
    width = 600 if film.container == 2.35 else 2 * round(HEIGHT * film.container / 2)
    w, h = 2 * round(HEIGHT * film.aspect / 2), 2 * round(width / film.aspect / 2)
    return width, HEIGHT, min(w, width), min(h, HEIGHT)


def shift(img: np.ndarray, dx: float, dy: float, w: int, h: int, *, lean: float = 0.0) -> np.ndarray:
    """The w x h window on a layer that moved by (dx, dy) and leans about its foot."""
    return cv2.warpAffine(img, np.float64([[1, -lean, dx + lean * img.shape[0]], [0, 1, dy]]), (w, h))


def over(below: np.ndarray, rgba: np.ndarray) -> np.ndarray:
    """Premultiplied RGBA laid on an RGB image of the same size."""
    inverse = cv2.cvtColor(255 - rgba[..., 3], cv2.COLOR_GRAY2RGB)
    return cv2.add(cv2.multiply(below, inverse, scale=1 / 255), cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB))


def render_film(film: SimpleNamespace, frames: int, shots: int) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yields (frame uint8 RGB [H, W, 3], shot, shot_time_ms): `frames` of them, spread evenly over `shots`."""
    fw, fh, w, h = frame_size(film)
    shade, grain = stock(film, w, h)
    clock, number, ramp, m = 0, -1, np.linspace(0, 1, 256)[:, None], MARGIN
    for k in range(frames):
        if number != k * shots // frames:
            number, step = k * shots // frames, 0
            s = Shot(film, number, w + 2 * m, h + 2 * m)
            clock += int(s.rng.integers(4_000, 90_000))
            curve = ramp * s.exposure
            curve = curve + film.contrast * (curve * curve * (3 - 2 * curve) - curve)
            lut = np.uint8(np.clip(curve * 255 * film.gain + film.lift, 0, 255))[:, None]
        dx, dy = np.clip(s.drift * (step - 2.5) + s.rng.normal(0, 0.4, 2) * film.handheld, -9, 9)
        img = shift(s.img, dx - m, dy - m, w, h)
        for sprite, x, y, (walk, sway), phase in s.actors:
            t = step * 0.7 + phase
            x, y = x + dx * 1.4 + walk * step * 1.5 - m, y + dy * 1.2 + 1.2 * np.sin(2 * t) - m
            img = over(img, shift(sprite, x, y, w, h, lean=0.012 * np.sin(t) + sway * 0.01))
        img = cv2.add(img, shift(s.bleed, dx - m, dy - m, w, h))
        if s.fall is not None:
            y = int(s.rng.integers(0, h))
            img = cv2.add(img, s.fall[y : y + h, m : m + w])
        if s.front is not None:  # its edges stay outside the frame
            img = over(img, shift(s.front, dx * 1.5 - m, dy * 1.5 - m, w, h))
        if film.mono:
            img = cv2.cvtColor(cv2.cvtColor(img, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        img = cv2.LUT(cv2.multiply(img, shade, scale=1 / 255), lut)
        gx, gy = s.rng.integers(0, 64, 2)
        img = cv2.subtract(cv2.add(img, grain[gy : gy + h, gx : gx + w]), (int(3 * film.grain),) * 4)
        x, y = (fw - w) // 2, (fh - h) // 2
        yield cv2.copyMakeBorder(img, y, fh - h - y, x, fw - w - x, cv2.BORDER_CONSTANT), number, clock
        step, clock = step + 1, clock + int(s.rng.integers(200, 500))


def write_film(index: int, *, out: Path, frames: int, seed: int, per_shot: int) -> str:
    """Writes one film's folder, whole or not at all; a film that is complete stays as it is. Returns its title."""
    cv2.setNumThreads(1)
    film, shots = film_design(index, seed), -(-frames // per_shot)
    folder, part = out / film.title, out / f".{film.title}.part"
    sidecar = folder / "frames.jsonl"
    rows = [json.loads(line) for line in sidecar.read_text(encoding="utf-8").splitlines()] if sidecar.exists() else []
    if [row["shot"] for row in rows if (folder / row["file"]).exists()] == [k * shots // frames for k in range(frames)]:
        return film.title
    for stale in (folder, part):  # of other settings, or of a run that was stopped
        shutil.rmtree(stale, ignore_errors=True)
    part.mkdir(parents=True)
    with open(part / "frames.jsonl", "w", encoding="utf-8") as sidecar:
        for k, (img, shot, ms) in enumerate(render_film(film, frames, shots)):
            name, (height, width) = f"{index:04d}{k:05d}", img.shape[:2]
            jpeg = cv2.imencode(".jpg", img[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
            (part / f"{name}.jpg").write_bytes(jpeg.tobytes())
            row = {"file": f"{name}.jpg", "id": name, "url": None, "shot_time_ms": ms, "shot": shot}
            sidecar.write(json.dumps(row | {"width": width, "height": height, "source": "rendered"}) + "\n")
    part.rename(folder)
    return film.title


def render_films(
    out: Path, indices: Iterable[int], frames: int, seed: int = 13, workers: int | None = None, per_shot: int = 6
) -> list[str]:
    """Renders films to out/<Title (Year)>/<id>.jpg and frames.jsonl; returns their titles in the order of indices."""
    indices, work = list(indices), partial(write_film, out=Path(out), frames=frames, seed=seed, per_shot=per_shot)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(tqdm(pool.map(work, indices), total=len(indices), desc="render", unit="film", disable=None))


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Render films that never were.")
    parser.add_argument("--films", type=int, default=5, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first one (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=120, help="frames a film (default: %(default)s)")
    parser.add_argument("--per-shot", type=int, default=3, help="frames a shot (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=13, help="of every design (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("data/raw"), help="folder (default: %(default)s)")
    return parser


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    if min(args.films, args.frames, args.per_shot) < 1 or args.first < 0:
        parser.error("--films, --frames and --per-shot must be 1 or more, --first 0 or more")
    indices = range(args.first, args.first + args.films)
    titles = render_films(args.out, indices, args.frames, args.seed, per_shot=args.per_shot)
    print(f"{len(titles)} films in {args.out}\nnext: python filter.py {args.out} --detector none")
    return 0


if __name__ == "__main__":
    sys.exit(main())
