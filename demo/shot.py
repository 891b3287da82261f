"""A shot of a rendered film: set, light, actors and weather, drawn once, then moved frame by frame.

For demo/films.py; nothing to run here.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from demo.design import Film
from demo.drawing import noise_tile, over, pattern, print_pattern, shapes, shift, stamp

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
MARGIN = 14  # px around the picture, room for the camera to move


@dataclass(frozen=True)
class Framing:
    zoom: float  # of the set
    blur: float  # of the set
    size: float  # height of a figure in frame heights
    figures: int  # at most


FRAMINGS = [
    Framing(0.85, 0.35, 0.42, 3),
    Framing(1.1, 0.45, 0.68, 2),
    Framing(1.45, 0.8, 1.4, 2),
    Framing(1.9, 1.1, 2.6, 1),
]


@dataclass(frozen=True)
class Particles:
    count: int
    length: int  # px
    thickness: int  # px


PARTICLES = {
    "rain": Particles(170, 16, 1),
    "snow": Particles(150, 0, 3),
    "dust": Particles(60, 0, 2),
    "embers": Particles(40, 0, 3),
}


@dataclass(frozen=True)
class Layer:
    """A depth of the ground on which things stand."""

    depth: float  # of haze
    lower: float  # how far below the horizon, as a share of the ground
    size: float  # of a thing in frame heights
    count: int


LAYERS = [Layer(0.5, 0.01, 0.26, 6), Layer(0.28, 0.1, 0.42, 4), Layer(0.08, 0.28, 0.66, 3)]


@dataclass(frozen=True)
class Actor:
    sprite: np.ndarray  # premultiplied RGBA
    x: float
    y: float
    walk: float  # px a frame, about
    sway: float
    phase: float  # of its steps

    def place(self, step: int, dx: float, dy: float, width: int, height: int) -> np.ndarray:
        """The actor on an empty frame of this size, so many frames into the shot; dx, dy: of the camera."""
        t = step * 0.7 + self.phase
        x = self.x + dx * 1.4 + self.walk * step * 1.5 - MARGIN
        y = self.y + dy * 1.2 + 1.2 * np.sin(2 * t) - MARGIN
        return shift(self.sprite, x, y, width, height, lean=0.012 * np.sin(t) + self.sway * 0.01)


class Shot:
    """What of a shot need not be drawn again for each frame, on width x height px, MARGIN on all sides included.

    What is random is drawn from one generator, in the order of the lines: another order is another film.
    """

    def __init__(self, film: Film, number: int, width: int, height: int) -> None:
        self.film = film
        self.width = width
        self.height = height
        self.rng = np.random.default_rng([film.seed, film.index, 4, number])
        self.image = np.zeros((height, width, 3), np.uint8)  # the set
        self.glow = np.zeros((height, width, 3), np.uint8)  # what of it shines
        self.light_side = int(self.rng.choice([-1, 1]))  # where the light comes from: left or right
        self.set_light()
        framing = FRAMINGS[self.rng.integers(len(FRAMINGS))]
        self.zoom = framing.zoom * self.rng.uniform(0.85, 1.2)
        figure_size = framing.size * self.rng.uniform(0.88, 1.12)
        horizon = np.clip(film.look.horizon + self.rng.normal(0, 0.03), 0.3, 0.85)
        self.horizon_row = int(height * horizon)
        weather = self.draw_set()
        self.particles = self.draw_particles(weather) if weather in PARTICLES else None
        self.bleed = self.develop(weather == "fog", 0.2 + film.look.blur * framing.blur)
        self.actors = self.place_actors(framing, figure_size)
        self.front = self.draw_foreground() if self.rng.random() < film.sets.fringe else None
        self.drift = self.rng.uniform(-1, 1, 2) * (2.2, 0.8)  # of the camera, px a frame
        self.exposure = self.rng.uniform(0.88, 1.18)

    def set_light(self) -> None:
        """Hour, weather and exposure: zenith, horizon, key, shadow, lamp, each float32 [3] in 0..255."""
        looks = np.array(LOOKS.split(), np.float32).reshape(-1, 5, 3)
        own = looks[self.rng.choice(self.film.look.looks)]
        other = looks[self.rng.integers(len(looks))]
        mixed = own + (other - own) * self.rng.uniform(0, 0.3)
        colours = mixed * self.rng.uniform(0.85, 1.15) * self.rng.uniform(0.94, 1.06, 3)
        grey = colours.mean(1, keepdims=True)
        colours = np.clip(grey + (colours - grey) * self.film.look.saturation, 0, 255).astype(np.float32)
        self.zenith = colours[0]
        self.horizon = colours[1]
        self.key = colours[2]
        self.shadow = colours[3]
        self.lamp = colours[4]

    def paint(self, albedo: np.ndarray, depth: float = 0.0, light: float = 1.0) -> tuple[float, ...]:
        """RGB of a surface: shadow and key light on its albedo, lost in the haze with depth 0..1."""
        lit = self.shadow * 0.5 + self.key * albedo * (light * 1.15)
        haze = min(0.95, depth * self.film.sets.haze)
        return tuple(np.clip(lit + (self.horizon - lit) * haze, 0, 255).tolist())

    def draw(self, shape, x: float, y: float, size, colour, glow: float = 0.0) -> None:
        """Stamps a silhouette on the set, and where it glows on what will bleed."""
        for image, light in ((self.image, 1.0), (self.glow, glow)):
            stamp(image, shape, x, y, size, tuple((np.array(colour) * light).tolist()))

    # ------------------------------------------------------------------------------------------------ the set

    def draw_set(self) -> str:
        """A tunnel, a wall or the outdoors; returns the weather, "none" indoors."""
        place = str(self.rng.choice(["tunnel", "wall", "outdoors"], p=self.film.sets.chances))
        if place == "outdoors":
            self.draw_outdoors()
            return str(self.rng.choice(self.film.sets.weather))
        self.draw_indoors(place)
        return "none"

    def draw_sky(self) -> None:
        """From zenith to horizon, with stars or a sun, and clouds."""
        width, height = self.width, self.height
        rng = self.rng
        film = self.film
        t = np.clip(np.arange(height) / max(self.horizon_row, 1), 0, 1)[:, None, None] ** film.look.gradient
        self.image[:] = self.zenith * (1 - t) + self.horizon * t
        if self.zenith.mean() < 60:
            for x, y, brightness in rng.random((90, 3)) * (width, self.horizon_row, 200):
                colour = (brightness + 50,) * 3
                cv2.circle(self.image, (int(x), int(y)), int(brightness > 190), colour, -1, cv2.LINE_AA)
        x = width * (0.5 + self.light_side * rng.uniform(0.12, 0.4))
        y = self.horizon_row * rng.uniform(0.4, 1)
        self.draw(film.sets.orb, x, y, film.sets.orb_size * height, np.minimum(self.key * 1.15, 255), 1.0)
        noise = np.roll(noise_tile(), rng.integers(256, size=2), (0, 1))[:, : film.sets.cloud_length]
        clouds = cv2.resize(noise, (width, height))
        veil = np.clip((clouds - 0.95 + 0.6 * film.sets.cloud) * 3, 0, 0.75)[..., None]
        self.image[:] = self.image + (self.horizon * 0.75 + self.key * 0.25 - self.image) * veil

    def draw_floor(self, top: int) -> None:
        """The ground from row top down, its pattern in perspective; wet ground mirrors what stands above."""
        width, height = self.width, self.height
        sets = self.film.sets
        rows = np.arange(top, height)
        near = np.float32(self.paint(self.film.look.albedo[1]))
        far = np.float32(self.paint(self.film.look.albedo[1], 0.8))
        t = (1 - (rows - top) / (height - top))[:, None, None] ** 2
        z = 1 / ((rows - top) / height + 0.04)
        tile = pattern(sets.floor, 48, sets.turned)
        scale = 26 / self.zoom
        u = ((np.arange(width) - width / 2)[None] / height * z[:, None] * scale).astype(int) % 96
        v = (z * scale * 3.5 + self.rng.integers(96)).astype(int)[:, None] % 96
        fade = sets.relief * np.clip((rows - top) / (0.3 * height), 0, 1)[:, None]
        ground = (far * t + near * (1 - t)) * (1 + fade * (tile[v, u] / 255 - 0.5))[..., None]
        if sets.wet:
            ripple = (3 * np.sin(rows * 0.9) * (rows - top) / height).astype(int)
            above = np.maximum(2 * top - 1 - rows, 0)
            mirror = self.image[above[:, None], (np.arange(width)[None] + ripple[:, None]) % width]
            ground = ground * (1 - sets.wet * 0.7) + mirror * (sets.wet * 0.75)
        self.image[top:] = np.clip(ground, 0, 255)

    def draw_house(self, x: float, y: float, size: float, depth: float) -> None:
        """A wall with a side in the shade, a roof, and windows: more of them are lit at night."""
        sets = self.film.sets
        albedo = self.film.look.albedo
        light = self.rng.uniform(0.5, 0.9)
        wide, tall = size * sets.house * (1, self.rng.uniform(0.6, 1.1))
        shade_x = x - self.light_side * wide * 0.34
        self.draw(sets.roof, x, y - tall, (wide, wide * 0.8), self.paint(albedo[2], depth, light * 0.5))
        self.draw("block", x, y, (wide, tall), self.paint(albedo[0], depth, light))
        self.draw("block", shade_x, y, (wide * 0.32, tall), self.paint(albedo[0], depth, light / 2))
        step = max(7.0, sets.storey * size)
        night = 0.6 if self.key.mean() < 190 else 0.12
        rows = np.arange(y - tall + step * 1.05, y - step * 0.25, step)[:14]
        columns = np.arange(x - wide / 2 + step * 0.6, x + wide / 2 - step * 0.4, step * 0.95)[:14]
        for window_y in rows:
            for window_x in columns:
                lit = self.rng.random() < sets.lit * night
                colour = self.lamp if lit else self.paint(albedo[2] * 0.3, depth)
                self.draw(sets.window, window_x, window_y, (step * 0.55, step * 0.72), colour, float(lit))

    def draw_thing(self, kind: str, x: float, y: float, size: float, depth: float) -> None:
        """A house, or a silhouette with a side in the light."""
        if kind == "house":
            self.draw_house(x, y, size, depth)
            return
        albedo = self.film.look.albedo[len(kind) % 2 * 2]
        light = self.rng.uniform(0.35, 0.7)
        light_x = x + self.light_side * size * 0.03
        self.draw(kind, x, y, size, self.paint(albedo, depth, light * 0.45))
        self.draw(kind, light_x, y, (size * 0.72, size * 0.97), self.paint(albedo, depth, light))

    def draw_ridges(self) -> None:
        """Two far ridges, seven silhouettes each."""
        albedo = self.film.look.albedo[2] * 0.7
        for depth, kind in zip((0.85, 0.6), self.film.sets.ridges * 2, strict=False):
            for x in (np.arange(7) + self.rng.random(7)) * self.width / 7:
                size = self.height * self.zoom**0.5 * self.rng.uniform([0.5, 0.12], [1.1, 0.36])
                self.draw(kind, x, self.horizon_row + 2, size, self.paint(albedo, depth))

    def draw_outdoors(self) -> None:
        """Sky, two far ridges, things in three depths on the ground, and the film's emblem."""
        width, height = self.width, self.height
        rng = self.rng
        sets = self.film.sets
        self.draw_sky()
        self.draw_ridges()
        main, other, rare = sets.things
        kinds = (main, other, main, rare)
        giants = rng.choice([1, 1, 1, 2])
        for layer in LAYERS:
            for x in rng.random(layer.count) * width:
                kind = kinds[rng.integers(4)]
                size = height * self.zoom * layer.size * rng.uniform(0.8, 1.15)
                y = self.horizon_row + layer.lower * (height - self.horizon_row)
                self.draw_thing(kind, x, y, size * giants, layer.depth)
            if layer is LAYERS[0]:  # the rest stands on the ground
                self.draw_floor(self.horizon_row)
        size = height * sets.emblem_size * 0.7 * self.zoom**0.6
        x = width * rng.uniform(0.2, 0.8)
        y = self.horizon_row - height * rng.uniform(0, 0.2)
        self.draw(sets.emblem, x, y, size, self.lamp, 1.0)

    def draw_indoors(self, kind: str) -> None:
        """A wall with windows or a tunnel of frames, a floor, and signs."""
        sets = self.film.sets
        foot = min(self.height - 8, int(self.horizon_row + 0.16 * self.height))  # of the wall
        self.image[:] = self.paint(self.film.look.albedo[0], 0.1, 0.3 if kind == "tunnel" else 0.75)
        if kind == "tunnel":
            self.draw_tunnel()
        cell = sets.cell * self.height * self.zoom**0.7
        print_pattern(self.image, sets.wall, cell, sets.turned, sets.relief * 0.9)
        if kind == "wall":
            self.draw_windows(foot - self.height * 0.12)
        self.draw_floor(foot)
        self.draw_signs(foot)

    def draw_tunnel(self) -> None:
        """Ten frames, one in another, with light at the end."""
        width, height = self.width, self.height
        for k, size in enumerate(2.3 * 0.74 ** np.arange(10) * height * self.zoom**0.3):
            colour = self.lamp
            if k < 9:
                colour = self.paint(self.film.look.albedo[k % 2], k / 11, 0.35 + 0.5 * (k % 2))
            frame = (size * max(1, width / height * 0.75), size)
            self.draw(self.film.sets.window, width / 2, self.horizon_row + size * 0.45, frame, colour, k == 9)

    def draw_windows(self, foot: float) -> None:
        """One to three windows with a view, their feet at this row."""
        window = self.film.sets.window
        rng = self.rng
        count = int(rng.integers(1, 4))
        size = self.height * rng.uniform(0.38, 0.6) * self.zoom**0.6
        view = self.horizon * 0.75 + self.lamp * 0.2
        for x in (np.arange(count) + rng.uniform(0.3, 0.7)) * self.width / count:
            self.draw(window, x, foot, (size * 0.92, size * 1.12), self.paint(self.film.look.albedo[2] * 0.5))
            self.draw(window, x, foot - size * 0.06, (size * 0.76, size), view, 0.35)

    def draw_signs(self, foot: float) -> None:
        """The emblem, three times hanging and lit, once on the wall, whose foot is at this row."""
        sets = self.film.sets
        height = self.height
        rng = self.rng
        for x in rng.random(3) * self.width:
            drop = height * rng.uniform(0.12, 0.3)
            size = height * sets.emblem_size * 0.6
            self.draw("block", x, drop, (1.5, drop), self.shadow)
            self.draw(sets.emblem, x, drop + size * 0.8, size * self.zoom**0.5, self.lamp, 1.0)
        colour = self.paint(self.film.look.albedo[3] * 1.25, 0.1)
        x = self.width * rng.uniform(0.15, 0.85)
        self.draw(sets.emblem, x, foot - height * 0.2, height * sets.emblem_size * self.zoom, colour)

    def develop(self, fog: bool, blur: float) -> np.ndarray:
        """Fog, light from one side and depth of field over the whole set; the glow that bleeds: RGB uint8 to add."""
        width, height = self.width, self.height
        look = self.film.look
        if fog:
            thickness = np.clip((np.arange(height)[:, None] - self.horizon_row * 0.5) / height, 0, 0.5)
            veil = cv2.resize(noise_tile(), (width, height)) * thickness * 1.5
            self.image[:] = self.image + (self.horizon - self.image) * veil[..., None]
        slope = np.linspace(0.74, 1.16, width, dtype=np.float32)[:: self.light_side, None]
        small = cv2.resize(self.glow, (width // 4, height // 4), interpolation=cv2.INTER_AREA)
        narrow = cv2.GaussianBlur(small, (0, 0), 2)
        wide = cv2.GaussianBlur(small, (0, 0), 8)
        bleed = cv2.addWeighted(narrow, 0.5, wide, 0.8, 0)
        streak = cv2.convertScaleAbs(cv2.blur(small, (width // 6, 1)), alpha=look.streak)  # of the lens
        bleed = cv2.add(bleed, streak)
        bleed = cv2.convertScaleAbs(cv2.resize(bleed, (width, height)), alpha=look.halation * 0.5)
        lit = np.uint8(np.clip(self.image * slope, 0, 255))
        self.image = cv2.add(cv2.GaussianBlur(lit, (0, 0), blur), bleed)
        return bleed

    # --------------------------------------------------------------------------------- who and what stands in it

    def place_actors(self, framing: Framing, size: float) -> list[Actor]:
        """Some of the cast beside each other; size: of a figure in frame heights."""
        rng = self.rng
        count = int(rng.integers(1, framing.figures + 1))
        slots = np.linspace(0, 1, count + 2)[1:-1] + rng.uniform(-0.12, 0.12, count)
        close = size >= 1
        actors = []
        for who, slot in zip(rng.permutation(4).tolist(), slots, strict=False):
            tall = size * self.height * self.film.cast.tall[who] ** (0.4 if close else 1)
            sprite, feet_row = self.draw_figure(who, tall, 0.3 if size < 0.5 else 0.0)
            if close:
                feet = self.height * 0.4 + tall * 0.92
            else:
                feet = np.clip(self.horizon_row + self.height * 0.2, tall * 1.16, self.height * 0.98)
            walk, sway = rng.uniform(-1, 1, 2)
            x = slot * self.width - sprite.shape[1] / 2
            actors.append(Actor(sprite, x, feet - feet_row, walk, sway, rng.uniform(0, 6)))
        return actors

    def draw_figure(self, who: int, size: float, depth: float) -> tuple[np.ndarray, float]:
        """One of the cast, `size` px tall: premultiplied RGBA uint8, cut at the frame; px from its top to its feet."""
        width = min(self.width, int(size * 0.9) + 8)
        height = min(int(self.height * 1.7), int(size * 1.24) + 4)
        face = int(self.rng.choice([-1, 0, 1]))  # to the left, to the lens, to the right
        figure = Figure(self, who, size, depth, np.zeros((height, width, 4), np.uint8))
        figure.draw_body(face)
        figure.draw_head(face)
        figure.draw_light()
        return figure.image, figure.feet_row

    def draw_foreground(self) -> np.ndarray:
        """What stands between the lens and the scene: premultiplied RGBA, out of focus."""
        image = np.zeros((self.height, self.width, 4), np.uint8)
        size = (self.rng.choice([-1, 1]) * self.height, self.height)
        colour = (*(self.shadow * 0.6).tolist(), 255)
        stamp(image, self.film.look.foreground, self.width / 2, self.height, size, colour)
        return cv2.GaussianBlur(image, (0, 0), 2.2)

    def draw_particles(self, kind: str) -> np.ndarray:
        """Rain, snow, dust or embers: RGB uint8 to add, twice the height so that it can fall."""
        particles = PARTICLES[kind]
        colour = (self.lamp if kind == "embers" else self.key * 0.4 + 20).tolist()
        image = np.zeros((self.height, self.width, 3), np.uint8)
        for x, y, nearness in self.rng.random((particles.count, 3)) * (self.width, self.height, 1):
            end = [x - particles.length / 5, y + particles.length * (0.6 + nearness)]
            thickness = 1 + int(particles.thickness * nearness * nearness)
            cv2.line(image, *np.int32([[x, y], end]), colour, thickness, cv2.LINE_AA)
        return np.tile(image, (2, 1, 1))

    # ------------------------------------------------------------------------------------------------- a frame

    def expose(self, step: int, width: int, height: int) -> np.ndarray:
        """What the lens sees so many frames into the shot, RGB uint8 [height, width, 3], before it is printed."""
        shake = self.rng.normal(0, 0.4, 2) * self.film.look.handheld
        dx, dy = np.clip(self.drift * (step - 2.5) + shake, -9, 9)
        image = shift(self.image, dx - MARGIN, dy - MARGIN, width, height)
        for actor in self.actors:
            image = over(image, actor.place(step, dx, dy, width, height))
        image = cv2.add(image, shift(self.bleed, dx - MARGIN, dy - MARGIN, width, height))
        if self.particles is not None:
            row = int(self.rng.integers(0, height))
            image = cv2.add(image, self.particles[row : row + height, MARGIN : MARGIN + width])
        if self.front is not None:  # its edges stay outside the frame
            image = over(image, shift(self.front, dx * 1.5 - MARGIN, dy * 1.5 - MARGIN, width, height))
        return image


class Figure:
    """One of the cast while it is drawn, on an image RGBA; places and sizes are in body heights, from its feet."""

    def __init__(self, shot: Shot, who: int, size: float, depth: float, image: np.ndarray) -> None:
        self.shot = shot
        self.who = who  # number in the cast
        self.size = size  # px
        self.depth = depth
        self.image = image
        self.feet_row = size * 1.22

    def tint(self, albedo: np.ndarray, light: float = 1.0) -> tuple[float, ...]:
        """RGBA of a surface."""
        return (*self.shot.paint(albedo * self.shot.film.cast.light, self.depth, light), 255)

    def draw(self, shape, x: float, y: float, wide: float, tall: float, colour: tuple) -> None:
        size = (wide * self.size, tall * self.size)
        middle = self.image.shape[1] / 2
        stamp(self.image, shape, middle + x * self.size, self.feet_row - y * self.size, size, colour)

    def draw_body(self, face: int) -> None:
        """Legs, body, arms, the pattern of the cloth, and a badge."""
        film = self.shot.film
        rng = self.shot.rng
        albedo = film.look.albedo
        cast = film.cast
        wide = cast.build[self.who]
        coat = self.tint(albedo[cast.coats[self.who]], 0.8)
        body, *legs = shapes()[cast.bodies[self.who % 2]]
        self.draw(legs, 0, 0, wide, 1, self.tint(albedo[2] * 0.5, 0.6))
        self.draw([body], 0, 0, wide, 1, coat)
        for side in (-1, 1):
            self.draw(str(rng.choice(cast.arms)), 0, 0, side * wide, rng.uniform(0.97, 1.03), coat)
        print_pattern(self.image, cast.cloth, cast.cloth_cell * self.size, film.sets.turned, 0.9)
        if cast.badge:
            self.draw(film.sets.emblem, 0.03 * face, 0.63, 0.1, 0.1, self.tint(albedo[3] * 1.5))

    def draw_head(self, face: int) -> None:
        """Neck, hair behind, face with a side in shade, hair in front, features, hat."""
        albedo = self.shot.film.look.albedo
        cast = self.shot.film.cast
        wide, tall = cast.head  # half the head
        skin = np.float32([0.95, 0.72, 0.58]) * cast.skin[self.who]
        y = 0.845 + tall  # the head's middle
        turn = face * wide * 0.25
        hair = self.tint(albedo[3] * 0.35, 0.8)
        shade = self.tint(skin, 0.55)
        self.draw("block", 0, 0.8, 0.09, 0.1, shade)
        self.draw(cast.hair[self.who % 2], 0, y, wide, tall, hair)
        self.draw("oval", 0, y, wide, tall, self.tint(skin, 0.95))
        self.draw("half", 0, y, -self.shot.light_side * wide, tall, shade)
        self.draw("fringe", 0, y + tall * 0.25, wide * 1.04, tall * 0.8, hair)
        dark = self.tint(np.float32([0.05] * 3), 0.3)
        white = self.tint(np.float32([1.0] * 3))
        for part, x, colour in (("rim", turn, dark), ("white", turn, white), ("pupil", turn * 1.25, dark)):
            self.draw(shapes().get(cast.eyes.replace("rim", part), []), x, y, wide, wide, colour)
        nose = self.tint(skin, 0.5)
        mouth = self.tint(skin * np.float32([0.8, 0.4, 0.4]), 0.6)
        self.draw("roof-steep", turn * 1.4, y - tall * 0.35, wide * 0.25, tall * 0.22, nose)
        self.draw("oval", turn, y - tall * 0.58, wide * 0.3, tall * 0.05, mouth)
        hat = self.tint(albedo[cast.coats[self.who] - 1] * 0.8, 0.7)
        self.draw(cast.hats[self.who // 2], 0, y + tall * 0.42, wide * 2.15, tall * 1.35, hat)

    def draw_light(self) -> None:
        """Shade across the body, and a rim on the side of the light."""
        image = self.image
        shot = self.shot
        alpha = image[..., 3:]
        shade = np.linspace(0.62, 1.12, image.shape[1], dtype=np.float32)[:: shot.light_side, None]
        moved = np.roll(image[..., 3], -shot.light_side * max(1, round(self.size * 0.012)), 1)
        rim = cv2.subtract(image[..., 3], moved)[..., None]
        light = shot.key * shot.film.cast.rim * (1 - self.depth)
        image[..., :3] = np.minimum(image[..., :3] * shade + rim / 255 * light, alpha)
