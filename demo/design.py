"""The design of a rendered film: its title, sets, cast, lens and stock, all drawn from a seed and a number.

For demo/films.py; nothing to run here.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from demo.drawing import PATTERNS, Polygon, shapes

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
WIDESCREEN = 16 / 9
ASPECTS = [1.33, 1.37, 1.66, 1.78, 1.85, 2.0, 2.2, 2.35, 2.39]
HUES = [[1, 0.62, 0.45], [0.5, 0.72, 0.55], [0.5, 0.6, 0.85], [0.85, 0.78, 0.6]]


@dataclass(frozen=True)
class World:
    """What the films of a world choose from."""

    nouns: list[str]
    ridges: list[str]
    things: list[str]
    floors: list[str]
    weather: list[str]
    bodies: list[str]
    hats: list[str]


@dataclass(frozen=True)
class Sets:
    """What stands, lies and hangs where a film plays. Sizes are shares of the picture's height."""

    ridges: list[str]
    floor: str
    weather: list[str]
    wall: str  # patterns
    window: str
    roof: str
    things: list[str]  # three kinds: the main one, another, a rare one
    orb: str
    chances: np.ndarray  # of a tunnel, a wall, the outdoors
    house: np.ndarray  # width and height, in sizes of a thing
    storey: float
    lit: float  # share of windows that are lit at night
    cell: float  # of the wall's pattern
    turned: int  # 1: patterns are turned
    relief: float  # how strongly patterns are printed
    wet: float  # how much the ground mirrors
    emblem: list[Polygon]
    emblem_size: float
    fringe: float  # share of shots with something between the lens and the scene
    orb_size: float
    cloud: float
    cloud_length: int  # px of the noise tile across the picture
    haze: float


@dataclass(frozen=True)
class Cast:
    """Four people, by number: what they wear and how they are built. Sizes are shares of a body's height."""

    bodies: list[str]
    hats: list[str]
    arms: list[str]
    cloth: str  # a pattern
    cloth_cell: float
    head: np.ndarray  # half width and half height
    hair: list[str]
    coats: np.ndarray  # numbers of the film's colours
    eyes: str
    badge: bool
    light: float  # how bright they are in the set
    skin: np.ndarray
    build: np.ndarray  # how wide
    tall: np.ndarray
    rim: float  # of light around them


@dataclass(frozen=True)
class Look:
    """Colour, light, lens and stock."""

    albedo: np.ndarray  # float32 [4, 3]: the film's four colours
    looks: np.ndarray  # numbers of LOOKS that it is shot in
    saturation: float
    mono: bool
    horizon: float  # row, as a share of the height
    gradient: float  # of the sky
    blur: float
    vignette: float
    vignette_power: float
    halation: float
    contrast: float
    scan: float  # how dark scan lines are
    streak: float  # of light across the lens
    foreground: str
    handheld: float  # px
    grain: float
    grain_size: float
    lift: np.ndarray  # of each channel
    gain: np.ndarray


@dataclass(frozen=True)
class Film:
    index: int
    seed: int
    title: str
    aspect: float  # of the picture
    container: float  # of the frame: where it is wider or narrower than the picture there are bars
    sets: Sets
    cast: Cast
    look: Look


def read_world(line: str) -> World:
    return World(*(column.split() for column in line.split("|")))


def choose_title(world: World, which: int, block: int, seed: int) -> str:
    """The title without a year of the film of this number among those of its world."""
    names = [f"The {adjective} {noun}" for adjective in ADJECTIVES.split() for noun in world.nouns]
    return np.random.default_rng([seed, which, 2]).permutation(names)[block % len(names)]


def make_picker(rng: np.random.Generator) -> Callable:
    """A function that draws one or several names from a list, or from the drawings whose ids begin so."""

    def pick(names: list | str, count: int | None = None):
        if isinstance(names, str):
            names = [name for name in shapes() if name.startswith(names)]
        return rng.choice(names, count, replace=False).tolist()

    return pick


def draw_emblem(rng: np.random.Generator) -> list[Polygon]:
    """A sign of the film's own: a star of 2-7 mirrored arms, perhaps with a hole, or a crescent."""
    arms = int(rng.integers(2, 8))
    radii = np.r_[0.5, rng.uniform(0.15, 0.5, 3)]
    star = rng.random() < 0.8
    around = np.tile(np.r_[radii, radii[-2:0:-1]], arms) if star else np.full(25, 0.5)  # or a disc
    angle = np.linspace(0, 2 * np.pi, len(around), endpoint=False) + np.pi / 2
    path = np.stack([around * np.cos(angle), around * np.sin(angle)], 1)
    if rng.random() < 0.6:  # one path around both edges: the fill is even-odd
        hole = path[::-1] * 0.45 if len(around) % 6 == 0 else path[::-1] * 0.75 + (0.12, 0)
        path = np.concatenate([path, path[:1], hole, hole[:1]])
    return [path + np.array([0, 0.5])]


def draw_albedo(rng: np.random.Generator) -> np.ndarray:
    """Four colours, float32 [4, 3] about 0..1."""
    hues = rng.permutation(np.array(HUES))
    brightness = 0.3 + 0.5 * rng.random((4, 1))
    tints = 0.45 + 0.95 * (hues * rng.uniform(0.85, 1.15, (4, 3)) - 0.25)
    return (brightness * tints).astype(np.float32)


def design_sets(rng: np.random.Generator, world: World, wall: str) -> Sets:
    """Fields are drawn in this order."""
    pick = make_picker(rng)
    uniform = rng.uniform
    return Sets(
        ridges=world.ridges,
        floor=pick(world.floors),
        weather=world.weather,
        wall=wall,
        window=pick("window-"),
        roof=pick("roof-"),
        things=[*pick(world.things, 2), pick(["house", "column", "stones", "pylon", "bare", "oak"])],
        orb=pick("orb-"),
        chances=rng.dirichlet([0.5, 0.6, 2.0]),
        house=uniform([0.3, 0.6], [0.9, 1.5]),
        storey=uniform(0.09, 0.18),
        lit=uniform(0.15, 0.9),
        cell=uniform(0.08, 0.18),
        turned=int(rng.integers(2)),
        relief=uniform(0.6, 1.0),
        wet=rng.choice([0, 0, 0.5, 0.8]),
        emblem=draw_emblem(rng),
        emblem_size=uniform(0.16, 0.34),
        fringe=uniform(0, 0.6),
        orb_size=uniform(0.08, 0.4),
        cloud=uniform(0, 0.75),
        cloud_length=rng.integers(60, 256),
        haze=uniform(0.3, 1.0),
    )


def design_cast(rng: np.random.Generator, world: World, cloth: str) -> Cast:
    """Fields are drawn in this order."""
    pick = make_picker(rng)
    uniform = rng.uniform
    return Cast(
        bodies=pick(world.bodies, 2),
        hats=pick(world.hats, 2),
        arms=pick("arm-", 4),
        cloth=cloth,
        cloth_cell=uniform(0.04, 0.08),
        head=uniform([0.041, 0.06], [0.075, 0.085]),
        hair=pick("hair-", 2),
        coats=rng.integers(0, 4, 4),
        eyes=pick("rim-"),
        badge=rng.random() < 0.7,
        light=uniform(0.75, 1.5),
        skin=uniform(0.25, 0.85, 4),
        build=uniform(0.75, 1.25, 4),
        tall=uniform(0.8, 1.12, 4),
        rim=uniform(0.2, 1.0),
    )


def design_look(rng: np.random.Generator, albedo: np.ndarray) -> Look:
    """Fields are drawn in this order."""
    pick = make_picker(rng)
    uniform = rng.uniform
    return Look(
        albedo=albedo,
        looks=rng.permutation(14)[:5],
        saturation=uniform(0.6, 1.2),
        mono=rng.random() < 0.06,
        horizon=uniform(0.42, 0.72),
        gradient=uniform(0.5, 2.2),
        blur=uniform(0.3, 1.3),
        vignette=uniform(0.1, 0.7),
        vignette_power=uniform(1.5, 5),
        halation=uniform(0.2, 1.0),
        contrast=uniform(0, 0.7),
        scan=rng.choice([0, 0, 0.2]),
        streak=rng.choice([0, 0, 1]),
        foreground=pick("front-"),
        handheld=uniform(0, 2.5),
        grain=uniform(2, 9),
        grain_size=uniform(1, 2.4),
        lift=uniform(0, 18, 3),
        gain=uniform(0.9, 1.08, 3),
    )


def film_design(index: int, seed: int = 13) -> Film:
    """A film's title and production design, from (seed, index) alone. Titles are unique up to index 863."""
    block, which = divmod(index, len(WORLDS))
    world = read_world(WORLDS[which])
    name = choose_title(world, which, block, seed)
    rng = np.random.default_rng([seed, index, 3])  # draws in this order, or films change
    pick = make_picker(rng)
    aspect = pick(ASPECTS)
    boxed = rng.random() < 0.35 and abs(aspect - WIDESCREEN) > 0.15
    albedo = draw_albedo(rng)
    cloth, wall = pick([kind for kind in PATTERNS if kind != "noise"], 2)
    year = rng.integers(1948, 2025)
    return Film(
        index=index,
        seed=seed,
        title=f"{name} ({year})",
        aspect=aspect,
        container=WIDESCREEN if boxed else aspect,
        sets=design_sets(rng, world, wall),
        cast=design_cast(rng, world, cloth),
        look=design_look(rng, albedo),
    )
