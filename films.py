"""Render films that never were, to try and measure the whole pipeline on: any number, offline, the same every time.

python films.py --films 5 --frames 120 --out data/raw      # some seconds on a laptop
python films.py --films 257 --frames 330 --out data/raw    # the size of the original's collection
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
from tqdm import tqdm

from identify import one_line_errors

# worlds: nouns | far ridges | things that stand about | floors | weather | bodies | hats
WORLDS = """
Alley Verdict Informer Boulevard Alibi Nocturne | towers | house house tank hydrant lamppost | bricks checks |
    rain fog | coat suit dress | fedora cap bowler;
Harbor Lighthouse Tide Captain Pier Anchor | sea hills | mast lighthouse crane house | planks waves |
    fog rain | coat suit bulky | cap beanie southwester;
Pines Hollow Huntsman Grove Wolves Bracken | pines hills | pine birch bare oak | noise dots |
    fog dust | cloak tunic poncho | hood beanie antlers;
Canyon Mesa Rider Coyote Dust Frontier | mesa dunes | cactus stones windmill tank | noise waves |
    dust none | poncho suit coat | cowboy straw bandana;
Orbit Colony Engine Airlock Voyager Signal | domes mesa | pod dish rocket crystal | hexes key |
    none dust | bulky bulky armour | helmet antenna none;
Winter Glacier Sledge Avalanche Frost Thaw | ridge ridge | pine stones house bare | noise waves |
    snow snow | bulky coat cloak | beanie hood ushanka;
Abbey Requiem Cathedral Manor Crypt Psalm | spires hills | cross arch bare statue | checks key |
    fog rain | robe cloak dress | hood mitre none;
Hotel Ballroom Concierge Waltz Duchess Staircase | domes towers | column statue arch house | checks sunray |
    none snow | suit dress dress | tophat pillbox none;
Arcade Circuit Replicant Skyline Proxy Vector | towers spires | house sign pylon house | grid key |
    rain rain | coat armour suit | visorhat hood mohawk;
Harvest Prairie Barn Orchard Scarecrow Furrow | hills hills | silo windmill oak house | furrows stripes |
    dust none | tunic dress suit | straw bandana cowboy;
Foundry Refinery Strike Furnace Derrick Turbine | towers mesa | chimney derrick tank pylon | grid bands |
    embers fog | bulky suit tunic | hardhat cap beanie;
Temple Orchid Delta Idol Monsoon Jaguar | hills ridge | palm totem ziggurat willow | triangles scallops |
    rain fog | tunic robe poncho | feathers turban straw;
Lawn Summer Neighbour Picnic Carpool Sprinkler | hills towers | house poplar oak car | stripes grid |
    none dust | suit dress tunic | none cap bun;
Carousel Circus Juggler Marquee Trapeze Clown | hills domes | tent wheel tent lamppost | sunray diamonds |
    embers none | tunic robe dress | tophat jester pillbox;
Railway Platform Express Signalman Junction Porter | ridge towers | wagon pylon signal chimney | planks furrows |
    snow rain | coat suit dress | kepi bowler fedora;
Samurai Lantern Shogun Heron Bamboo Ronin | ridge pines | gate pagodahouse bamboo willow | planks scallops |
    snow fog | robe armour robe | straw horns topknot;
Moons Comet Mushroom Spore Eclipse Relic | domes dunes | mushroom bulb crystal totem | rings scallops |
    embers dust | robe cloak bulky | pointed antenna mitre;
Regiment Trench Bridge Armistice Bugle Border | ridge hills | bare stones pylon gun | noise furrows |
    fog embers | coat tunic armour | hardhat kepi horns
"""
ADJECTIVES = """
Copper Silent Paper Crimson Hollow Ivory Last Burning Distant Velvet Iron Broken Amber Drowned Second Pale
Golden Secret Northern Restless Glass Wicked Gentle Forgotten Electric Stolen Blind Midnight Scarlet Salt
"""

# silhouettes in percent of their size, x from the middle, y up from the ground; a ";" parts polygons, a "|" silhouettes
SHAPES = """
pane: -45 0 45 0 45 100 -45 100 | slit: -16 0 16 0 16 100 -16 100 |
arch: -40 0 40 0 40 60 32 82 18 95 0 100 -18 95 -32 82 -40 60 | lancet: -36 0 36 0 36 50 20 80 0 100 -20 80 -36 50 |
porthole: 0 0 25 7 43 25 50 50 43 75 25 93 0 100 -25 93 -43 75 -50 50 -43 25 -25 7 |
hex: -25 6 25 6 50 50 25 94 -25 94 -50 50 | lozenge: 0 0 42 50 0 100 -42 50 | trapeze: -50 0 50 0 24 100 -24 100 |
twin: -42 0 -8 0 -8 100 -42 100; 8 0 42 0 42 100 8 100 |
quad: -42 0 -5 0 -5 45 -42 45; 5 0 42 0 42 45 5 45; -42 55 -5 55 -5 100 -42 100; 5 55 42 55 42 100 5 100 |
band: -50 25 50 25 50 75 -50 75 | keyhole: -30 0 30 0 15 45 34 65 30 90 0 100 -30 90 -34 65 -15 45 |
flat: -54 0 54 0 54 6 -54 6 | gable: -60 0 60 0 0 55 | steep: -54 0 54 0 0 130 |
dome: -50 0 50 0 44 25 28 43 4 50 4 80 -4 80 -4 50 -28 43 -44 25 |
onion: -38 0 38 0 50 25 40 45 15 65 0 115 -15 65 -40 45 -50 25 |
steps: -50 0 50 0 50 20 30 20 30 40 12 40 12 70 -12 70 -12 40 -30 40 -30 20 -50 20 |
crenel: -54 0 54 0 54 24 32 24 32 10 12 10 12 24 -12 24 -12 10 -32 10 -32 24 -54 24 |
pagoda: -80 14 -40 0 40 0 80 14 30 32 -30 32; -60 48 -25 32 25 32 60 48 0 80 | saw: -50 0 0 0 0 45; 0 0 50 0 50 45 |
mast-roof: -50 0 50 0 50 5 -50 5; -3 0 3 0 1 130 -1 130; -22 70 22 70 22 75 -22 75; -14 95 14 95 14 99 -14 99 |
shed: -56 0 56 0 56 48 -56 10 | mansard: -55 0 55 0 40 45 -40 45 | prongs: -50 0 50 0 62 65 36 12 -36 12 -62 65 |
pine: -4 0 4 0 4 20 -4 20; -28 14 28 14 0 60; -22 40 22 40 0 80; -15 62 15 62 0 100 |
poplar: -3 0 3 0 3 20 -3 20; 0 10 14 25 17 55 10 85 0 100 -10 85 -17 55 -14 25 |
oak: -6 0 6 0 4 45 -4 45; 0 30 30 33 48 55 40 80 20 92 0 100 -20 90 -42 82 -48 58 -32 34 |
birch: -4 0 4 0 3 130 -3 130; 2 60 18 82 3 66; -2 85 -16 104 -3 91 |
bare: -5 0 5 0 2 50 -2 50; -1 40 3 40 36 88; -3 38 1 42 -32 92; -2 48 2 48 8 105; 14 58 17 60 15 98; -14 56 -12 62 -42
70; 20 66 22 70 46 76; -20 72 -17 72 -18 104 |
palm: -3 0 3 0 6 70 1 70; 3 70 30 86 48 62 26 78; 3 70 -25 90 -44 66 -20 80; 3 70 20 102 40 94 18 88; 3 70 -12 102 -34
98 -10 90; 3 70 28 68 36 44 20 60; 3 70 -20 70 -30 46 -14 62 |
cactus: -8 0 8 0 8 95 0 100 -8 95; -30 35 -8 35 -8 46 -20 46 -20 76 -30 76; 8 50 30 50 30 86 20 86 20 61 8 61 |
willow: -5 0 5 0 4 70 -4 70; -42 16 -34 75 0 100 32 75 44 18 32 42 24 12 13 46 1 16 -10 46 -20 12 -31 42 |
bamboo: -22 0 -18 0 -20 120 -24 120; -4 0 0 0 4 130 0 130; 16 0 20 0 15 115 11 115; 2 90 30 105 18 82; -21 80 -44 98
-34 74; 17 70 42 78 30 60 |
mushroom: -8 0 8 0 6 60 -6 60; -45 52 45 52 36 80 15 95 -15 95 -36 80 |
bulb: -3 0 3 0 2 60 -2 60; 0 50 18 57 26 75 18 93 0 100 -18 93 -26 75 -18 57; 3 0 8 0 24 35 20 35; 22 33 32 42 22 52 12
42 |
reed: -30 0 -26 0 -40 80; -12 0 -8 0 -8 100; 8 0 12 0 18 90; 25 0 29 0 46 70 |
lighthouse: -16 0 16 0 9 78 -9 78; -13 78 13 78 13 82 -13 82; -8 82 8 82 8 91 -8 91; -12 91 12 91 0 102 |
crane: -5 0 5 0 3 95 -3 95; -30 80 70 90 70 93 -30 86; 60 50 61 50 61 90 60 90; 54 40 67 40 67 50 54 50; 0 106 3 95 -3
95 |
mast: -50 8 52 8 36 0 -36 0; -2 8 2 8 1 105 -1 105; 4 16 42 16 4 95; -4 22 -30 22 -4 85 |
rocket: -10 12 10 12 11 70 0 105 -11 70; -10 12 -24 0 -10 38; 10 12 24 0 10 38 |
dish: -4 0 4 0 3 45 -3 45; -42 75 -20 42 16 36 44 58; 0 55 3 57 -18 92 -20 90; -24 90 -15 90 -15 97 -24 97 |
pod: -20 0 -15 0 -22 30 -27 30; 20 0 15 0 22 30 27 30; -48 40 -30 24 30 24 48 40 30 62 0 70 -30 62 |
crystal: -18 0 14 0 18 55 2 105 -16 60; 14 0 36 0 40 30 30 58 16 30; -16 0 -34 0 -42 26 -26 44 |
tent: -50 0 50 0 46 42 -46 42; -56 42 56 42 4 88 -4 88; -1 88 1 88 1 108 -1 108; 1 108 22 102 1 96 |
wheel: -4 50 4 50 24 0 18 0; -4 50 4 50 -18 0 -24 0; 0 8 30 20 42 50 30 80 0 92 -30 80 -42 50 -30 20 0 8 0 18 -23 27
-33 50 -23 73 0 82 23 73 33 50 23 27 0 18; -2 18 2 18 2 82 -2 82; -33 48 33 48 33 52 -33 52 |
windmill: -12 0 12 0 6 62 -6 62; -2 58 2 62 36 98 26 104; 2 58 -2 62 -36 98 -42 90; 2 62 -2 58 34 26 42 34; -2 62 2 58
-34 24 -26 18 |
tank: -26 0 -21 0 -16 50 -20 50; 26 0 21 0 16 50 20 50; -2 0 2 0 2 50 -2 50; -28 50 28 50 28 86 -28 86; -31 86 31 86 0
104 |
hydrant: -9 0 9 0 8 22 -8 22; -13 12 13 12 13 16 -13 16; -6 22 6 22 0 30 |
lamppost: -2 0 2 0 1 88 -1 88; -1 88 1 84 18 90 18 94; 10 82 26 82 20 92 16 92 |
sign: -3 0 3 0 3 100 -3 100; 3 45 40 45 40 96 3 96 | chimney: -14 0 14 0 7 100 -7 100; -10 92 10 92 10 97 -10 97 |
derrick: -26 0 -20 0 -3 90 -6 90; 26 0 20 0 3 90 6 90; -24 20 24 20 24 23 -24 23; -16 50 16 50 16 53 -16 53; -9 90 9 90
9 100 -9 100; -22 22 -18 22 15 50 12 50 |
obelisk: -10 0 10 0 6 88 0 100 -6 88 |
column: -16 0 16 0 16 6 -16 6; -11 6 11 6 9 92 -9 92; -17 92 17 92 17 100 -17 100 |
stones: -40 0 -2 0 -6 40 -22 52 -36 36; -6 0 40 0 34 68 18 86 2 60; 24 0 56 0 50 24 36 30 |
cross: -14 0 14 0 14 8 -14 8; -5 8 5 8 5 100 -5 100; -28 62 28 62 28 72 -28 72 |
statue: -22 0 22 0 22 26 -22 26; -12 26 12 26 15 66 -13 66; -6 70 6 70 7 84 -7 84; 10 62 15 66 34 98 30 99 |
totem: -14 0 14 0 14 100 -14 100; -34 60 34 60 24 72 -24 72; -24 30 24 30 18 38 -18 38; -24 100 24 100 0 116 |
ziggurat: -60 0 60 0 50 25 40 25 34 50 24 50 19 75 11 75 8 95 -8 95 -11 75 -19 75 -24 50 -34 50 -40 25 -50 25 |
pylon: -20 0 -17 0 -2 100 -4 100; 20 0 17 0 2 100 4 100; -34 78 34 78 34 81 -34 81; -26 60 26 60 26 63 -26 63; -15 20
15 20 15 23 -15 23 |
silo: -20 0 20 0 20 80 -20 80; -22 80 22 80 14 94 0 100 -14 94 |
car: -50 8 50 8 50 26 30 30 18 46 -22 46 -34 30 -50 26; -36 0 -24 0 -20 8 -40 8; 36 0 24 0 20 8 40 8 |
wagon: -60 10 60 10 60 50 -60 50; -64 50 64 50 56 57 -56 57; -48 0 -34 0 -30 10 -52 10; 48 0 34 0 30 10 52 10 |
signal: -3 0 3 0 2 100 -2 100; -2 86 32 92 32 99 -2 95; -6 70 6 70 6 84 -6 84 |
gate: -36 0 -28 0 -26 84 -33 84; 36 0 28 0 26 84 33 84; -56 92 -50 84 50 84 56 92 54 100 -54 100; -40 66 40 66 40 72
-40 72 |
pagodahouse: -26 0 26 0 26 28 -26 28; -46 34 -28 26 28 26 46 34 22 44 -22 44; -18 44 18 44 18 58 -18 58; -36 64 -18 57
18 57 36 64 14 74 -14 74; -10 74 10 74 10 84 -10 84; -26 90 -10 83 10 83 26 90 0 108 |
gun: -20 0 20 0 24 20 -24 20; -10 16 10 24 64 62 60 68; -30 6 -12 -2 -6 18 -24 26 |
coat: -13 83 13 83 16 50 19 15 -19 15 -16 50; -9 15 -2 15 -3 0 -12 0; 2 15 9 15 12 0 3 0 |
suit: -15 83 15 83 11 47 -11 47; -11 48 0 48 -2 0 -11 0; 0 48 11 48 11 0 2 0 |
dress: -10 83 10 83 7 62 12 46 24 12 -24 12 -12 46 -7 62; -6 12 -2 12 -2 0 -6 0; 2 12 6 12 6 0 2 0 |
robe: -11 84 11 84 18 50 25 0 -25 0 -18 50 |
poncho: -8 85 8 85 34 44 0 36 -34 44; -11 44 0 44 -2 0 -11 0; 0 44 11 44 11 0 2 0 |
cloak: -17 85 17 85 28 34 22 3 -22 3 -28 34 |
tunic: -13 83 13 83 10 60 17 34 -17 34 -10 60; -10 36 -1 36 -2 0 -9 0; 1 36 10 36 9 0 2 0 |
bulky: -18 84 18 84 23 66 18 42 -18 42 -23 66; -18 44 0 44 -2 0 -17 0; 0 44 18 44 17 0 2 0 |
armour: -27 86 27 86 24 74 14 68 11 48 -11 48 -14 68 -24 74; -12 50 0 50 -3 0 -13 0; 0 50 12 50 13 0 3 0 |
none: 0 0 1 0 1 1 | fedora: -80 0 80 0 74 9 -74 9; -44 9 44 9 38 52 0 44 -38 52 |
bowler: -64 0 64 0 60 8 -60 8; -44 8 44 8 38 36 18 50 -18 50 -38 36 |
tophat: -68 0 68 0 66 8 -66 8; -42 8 42 8 46 92 -46 92 |
cowboy: -118 16 -100 2 0 -4 100 2 118 16 60 12 -60 12; -44 6 44 6 36 60 12 50 -12 50 -36 60 |
straw: -125 -8 125 -8 0 62 | southwester: -60 0 90 -22 60 12 -50 12; -50 8 52 8 40 44 0 56 -40 44 |
cap: -50 0 88 0 86 7 50 13 42 36 0 46 -44 36 | kepi: -50 0 74 -4 52 10 46 52 -40 44 | pillbox: -46 6 46 6 42 40 -42 40 |
beanie: -52 -4 52 -4 46 36 20 56 -20 56 -46 36; -10 54 10 54 12 70 -12 70 |
ushanka: -66 -60 -44 -50 -46 6 46 6 44 -50 66 -60 68 20 44 52 -44 52 -68 20 |
hood: -70 -110 -66 0 -34 52 0 72 34 52 66 0 70 -110 42 -70 42 6 0 30 -42 6 -42 -70 |
helmet: -70 -80 -78 -20 -58 36 0 62 58 36 78 -20 70 -80 44 -74 48 -4 0 12 -48 -4 -44 -74 |
hardhat: -62 0 66 0 62 8 52 10 40 42 0 54 -40 42 -54 10 | mitre: -40 4 40 4 52 60 0 125 -52 60 |
visorhat: -58 -40 62 -40 62 -8 -58 -8; -52 2 52 2 44 32 -44 32 | mohawk: -14 8 14 8 22 82 -22 76 |
bandana: -52 0 52 0 44 34 -44 34; -50 4 -86 -18 -74 -30 -48 -6 |
antlers: -46 0 46 0 36 30 -36 30; -20 26 -14 26 -52 96 -64 110; -40 66 -34 62 -84 92; 20 26 14 26 52 96 64 110; 40 66
34 62 84 92 |
antenna: -54 -4 54 -4 46 36 0 50 -46 36; -26 40 -22 40 -44 98 -48 98; 26 40 22 40 44 98 48 98; -54 94 -40 94 -40 108
-54 108; 40 94 54 94 54 108 40 108 |
feathers: -48 2 48 2 46 16 -46 16; -40 14 -20 14 -44 92 -62 86; -14 14 14 14 10 108 -10 108; 20 14 40 14 62 86 44 92 |
turban: -62 0 0 -8 62 0 60 30 28 62 -28 62 -60 30; -8 20 8 20 8 44 -8 44 |
bun: -50 -10 50 -10 42 32 0 46 -42 32; -22 40 22 40 26 66 0 80 -26 66 |
topknot: -48 0 48 0 36 32 -36 32; -10 30 10 30 14 66 -14 66 |
jester: -50 0 50 0 110 30 70 54 0 34 -70 54 -110 30; 104 20 122 20 122 36 104 36; -122 20 -104 20 -104 36 -122 36 |
horns: -52 -6 52 -6 46 34 -46 34; 44 10 60 16 88 70 66 44; -44 10 -60 16 -88 70 -66 44 |
pointed: -90 -4 90 -4 72 8 -72 8; -44 6 44 6 16 140
"""
WINDOWS = "pane slit arch lancet porthole hex lozenge trapeze twin quad band keyhole"
ROOFS = "flat gable steep dome onion steps crenel pagoda saw mast-roof shed mansard prongs"
EMBLEMS = "palm wheel rocket mast crystal gate windmill mushroom tent"
# a cell of every pattern: a and b run from 0 to 1 across it
PATTERNS = {
    "stripes": lambda a, b: a < 0.5,
    "bands": lambda a, b: b < 0.5,
    "checks": lambda a, b: (a < 0.5) ^ (b < 0.5),
    "plaid": lambda a, b: 0.5 * (a < 0.4) + 0.5 * (b < 0.4),
    "grid": lambda a, b: (a < 0.12) | (b < 0.12),
    "dots": lambda a, b: np.hypot(a - 0.5, b - 0.5) < 0.3,
    "rings": lambda a, b: abs(np.hypot(a - 0.5, b - 0.5) - 0.32) < 0.09,
    "diamonds": lambda a, b: abs(a - 0.5) + abs(b - 0.5) < 0.36,
    "chevron": lambda a, b: (b + abs(a - 0.5)) % 1 < 0.5,
    "waves": lambda a, b: (b + 0.16 * np.sin(2 * np.pi * a)) % 1 < 0.5,
    "bricks": lambda a, b: ((b * 2) % 1 < 0.16) | ((a + 0.5 * (b > 0.5)) % 1 < 0.08),
    "scallops": lambda a, b: abs(np.hypot(a - 0.5, b) - 0.42) < 0.09,
    "crosses": lambda a, b: np.minimum(abs(a - 0.5), abs(b - 0.5)) + 0.28 * (np.hypot(a - 0.5, b - 0.5) > 0.4) < 0.12,
    "triangles": lambda a, b: 2 * abs(a - 0.5) < b,
    "herringbone": lambda a, b: ((b + np.where(a < 0.5, a, -a)) * 2) % 1 < 0.5,
    "weave": lambda a, b: np.where((a < 0.5) ^ (b < 0.5), (a * 4) % 1, (b * 4) % 1) < 0.5,
    "sunray": lambda a, b: (np.arctan2(b - 0.5, a - 0.5) / (2 * np.pi) * 10) % 1 < 0.5,
    "blades": lambda a, b: abs(a - 0.5) * abs(b - 0.5) < 0.025,
    "key": lambda a, b: (np.maximum(abs(a - 0.5), abs(b - 0.5)) * 6) % 1 < 0.5,
    "hexes": lambda a, b: np.maximum(abs(a - 0.5), abs(a - 0.5) / 2 + abs(b - 0.5)) > 0.42,
    "furrows": lambda a, b: np.sin(2 * np.pi * a) ** 2,
    "planks": lambda a, b: (a * 2 % 1 < 0.1) | ((b + 0.5 * (a > 0.5)) % 1 < 0.04),
    "noise": lambda a, b: cv2.resize(noise_tile(), a.shape[::-1]),
}
# hours and weathers that every film shares: zenith, horizon, key light, shadow, lamp
LOOKS = """
70 125 190 200 215 225 255 245 225 50 62 90 255 225 160; 85 105 150 252 190 110 255 205 130 62 48 62 255 190 90;
45 42 95 240 120 85 245 150 120 36 28 58 255 160 80; 16 28 70 95 125 175 140 160 210 14 20 46 255 190 110;
5 9 26 30 46 78 105 125 175 5 8 20 255 205 130; 130 140 148 190 194 192 205 208 205 48 54 60 250 230 190;
60 90 80 165 180 140 205 215 170 22 40 34 250 240 150; 50 14 30 200 70 50 240 120 90 32 8 16 255 120 70;
24 10 50 150 50 130 205 110 200 18 8 38 90 240 255; 14 60 76 110 180 175 160 220 210 8 34 44 255 170 90;
60 38 20 190 130 70 255 190 115 34 20 14 255 205 120; 150 150 185 250 205 200 250 220 210 70 60 84 255 210 150;
30 34 40 92 96 100 165 170 175 14 16 20 240 235 215; 20 40 24 90 130 70 190 210 120 10 22 14 240 255 140;
40 60 110 120 190 230 200 235 255 26 40 70 255 240 200; 80 50 60 222 160 140 235 180 150 40 24 34 255 230 150
"""
# framing: chance, zoom of the set, its blur, height of a figure in frame heights
FRAMINGS = {
    "wide": (0.22, 0.85, 0.35, 0.42),
    "full": (0.22, 1.1, 0.45, 0.68),
    "medium": (0.2, 1.5, 0.8, 1.35),
    "two": (0.17, 1.4, 0.8, 1.5),
    "close": (0.19, 1.9, 1.1, 2.6),
}
PARTICLES = {"rain": 170, "snow": 150, "dust": 60, "embers": 40}  # how many
ASPECTS = [1.33, 1.37, 1.66, 1.78, 1.85, 2.0, 2.2, 2.35, 2.39]
HEIGHT, MARGIN = 256, 14  # px; the margin is room for the camera to move


@dataclass(frozen=True)
class Film:
    """One film's production design; `d` holds what is the same in each of its shots."""

    index: int
    seed: int
    title: str
    aspect: float  # of the picture
    container: float  # of the frame: wider or narrower than the picture means bars
    d: SimpleNamespace


# ---------------------------------------------------------------- vocabulary


@lru_cache(maxsize=1)
def shapes() -> dict[str, list[np.ndarray]]:
    """Silhouettes by name: polygons [n, 2], in units of the size they are drawn at."""
    entries = (entry.split(":") for entry in SHAPES.split("|"))
    return {k.strip(): [np.array(p.split(), np.float32).reshape(-1, 2) / 100 for p in v.split(";")] for k, v in entries}


@lru_cache(maxsize=1)
def noise_tile(n: int = 256) -> np.ndarray:
    """Clouds: float32 [n, n] in 0..1, the same for every film, wraps around."""
    rng, out = np.random.default_rng(0), np.zeros((n, n), np.float32)
    for k in (4, 8, 16, 32, 64):
        grid = np.pad(rng.random((k, k), np.float32), 2, mode="wrap")
        big = cv2.resize(grid, None, fx=n / k, fy=n / k, interpolation=cv2.INTER_CUBIC)
        out += big[2 * n // k : 2 * n // k + n, 2 * n // k : 2 * n // k + n] / k**0.8
    return (out - out.min()) / (out.max() - out.min())


@lru_cache(maxsize=256)
def pattern(kind: str, cell: int, turn: int = 0) -> np.ndarray:
    """A tile of 2x2 cells of a pattern, uint8 [2 cell, 2 cell], antialiased."""
    a, b = np.meshgrid(*[(np.arange(8 * cell) + 0.5) / (4 * cell) % 1] * 2)
    full = np.float32(PATTERNS[kind](*((b, a) if turn else (a, b))))
    return np.uint8(255 * cv2.resize(full, (2 * cell, 2 * cell), interpolation=cv2.INTER_AREA))


def print_on(img: np.ndarray, kind: str, cell: float, turn: int, amount: float, x: int = 0, y: int = 0) -> None:
    """Prints a pattern on an image in place: its light parts lift the colour, its dark parts sink it."""
    tile = pattern(kind, max(3, round(cell)), turn)
    lut = np.uint8(np.clip(200 * (1 + amount * (np.arange(256) / 255 - 0.5)), 0, 255))
    rows, cols = ((np.arange(n) + start) % len(tile) for n, start in zip(img.shape[:2], (y, x), strict=True))
    factor = cv2.cvtColor(lut[tile][rows][:, cols], cv2.COLOR_GRAY2RGB)
    img[..., :3] = cv2.multiply(np.ascontiguousarray(img[..., :3]), factor, scale=1 / 200)


def stamp(img: np.ndarray, shape: str | list[np.ndarray], x: float, y: float, size, colour: tuple) -> None:
    """Draws a silhouette with its foot at (x, y); size in px, or (width, height)."""
    for polygon in shapes()[shape] if isinstance(shape, str) else shape:
        points = np.array([x, y]) + polygon * size * np.array([1, -1])
        cv2.fillPoly(img, [np.int32(points * 16)], colour, cv2.LINE_AA, 4)


def emblem(rng: np.random.Generator) -> list[np.ndarray]:
    """A sign of the film's own: a star of 2-7 mirrored arms, perhaps with a hole, a crescent, or a silhouette."""
    n, radii, kind = int(rng.integers(2, 8)), rng.uniform(0.15, 0.5, 4), rng.integers(6)
    radii[rng.integers(4)] = 0.5
    if kind == 5:
        return shapes()[str(rng.choice(EMBLEMS.split()))]
    around = np.tile(np.r_[radii, radii[-2:0:-1]], n) if kind < 4 else np.full(24, 0.5)
    angle = np.linspace(0, 2 * np.pi, len(around), endpoint=False) + np.pi / 2
    path = np.stack([around * np.cos(angle), 0.5 + around * np.sin(angle)], 1)
    if kind > 1:  # one path around both edges: the fill is even-odd
        hole = (path[::-1] - [0, 0.5]) * (0.45 if kind < 4 else 0.75) + ([0, 0.5] if kind < 4 else [0.12, 0.5])
        path = np.concatenate([path, path[:1], hole, hole[:1]])
    return [path.astype(np.float32)]


def film_design(index: int, seed: int = 13) -> Film:
    """The production design of film `index`: depends on (seed, index) alone. Titles are unique up to index 3239."""
    worlds = [[column.split() for column in world.split("|")] for world in WORLDS.split(";")]
    block, place = divmod(index, len(worlds))  # the first 18 films are of 18 worlds, and so on
    which = int(np.random.default_rng([seed, block, 1]).permutation(len(worlds))[place])
    nouns, ridges, things, floors, weather, bodies, hats = worlds[which]
    pair = int(np.random.default_rng([seed, which, 2]).permutation(30 * len(nouns))[block % (30 * len(nouns))])
    rng = np.random.default_rng([seed, index, 3])
    uniform, chance = rng.uniform, lambda p: bool(rng.random() < p)

    def pick(names, n=None):
        names = names.split() if isinstance(names, str) else names
        return [str(x) for x in rng.choice(names, n, replace=False)] if n else str(rng.choice(names))

    title = f"The {ADJECTIVES.split()[pair % 30]} {nouns[pair // 30]} ({rng.integers(1948, 2025)})"
    aspect, boxed = float(rng.choice(ASPECTS)), chance(0.35)
    hues = rng.permutation(np.array([[1, 0.62, 0.45], [0.5, 0.72, 0.55], [0.5, 0.6, 0.85], [0.85, 0.78, 0.6]]))
    albedo = (0.3 + 0.5 * rng.random((4, 1))) * (0.45 + 0.95 * (hues * uniform(0.85, 1.15, (4, 3)) - 0.25))
    cloth, wall = pick([p for p in PATTERNS if p not in ("noise", "furrows", "planks")], 2)
    d = SimpleNamespace(
        # sets
        ridges=ridges, floor=pick(floors), weather=weather, window=pick(WINDOWS), roof=pick(ROOFS), wall=wall,
        things=[*pick(sorted(set(things)), 2), pick("house column stones obelisk pylon bare oak")],
        arrange=pick("row avenue lone crowd mirror"), sets=rng.dirichlet([0.5, 0.4, 0.5, 0.25, 1.8]),
        house=uniform([0.3, 0.6], [0.9, 1.5]), storey=uniform(0.09, 0.18), lit=uniform(0.15, 0.9),
        cell=uniform(0.08, 0.18), turn=int(rng.integers(2)), relief=uniform(0.6, 1.0),
        wet=rng.choice([0, 0, 0.5, 0.8]), emblem=emblem(rng), emblem_size=uniform(0.16, 0.34), fringe=uniform(0.3, 0.6),
        foreground=pick("none blinds branches railing pipes arch curtain reed cables fence palm bokeh"),
        orb=pick("sun moon twin ringed stars none"), orb_size=uniform(0.04, 0.2),
        cloud=uniform(0, 0.75), cloud_long=uniform(0.2, 1.2), haze=uniform(0.3, 1.0),
        # cast
        bodies=pick(sorted(set(bodies)), 2), hats=pick(hats, 2), cloth=cloth, cloth_cell=uniform(0.04, 0.08),
        head=uniform([0.041, 0.06], [0.075, 0.085]), hair=pick("short long afro spikes", 2),
        coats=rng.integers(0, 4, 4), eyes=pick("dots slits wide glasses shades mask goggles shadow"), badge=chance(0.7),
        rim=uniform(0.2, 1.0), light=uniform(0.75, 1.5), skin=uniform(0.25, 0.85, 4), build=uniform(0.75, 1.25, 4),
        tall=uniform(0.8, 1.12, 4),
        # lens, light and stock
        albedo=albedo.astype(np.float32), looks=rng.permutation(len(LOOKS.split(";")))[:5],
        saturation=uniform(0.6, 1.2), mono=chance(0.06), horizon=uniform(0.42, 0.72), gradient=uniform(0.5, 2.2),
        shafts=chance(0.4), vignette=uniform(0.1, 0.7), vignette_power=uniform(1.5, 5), halation=uniform(0.2, 1.0),
        streak=chance(0.3), fringing=rng.choice([0, 0, 0.8, 1.6]), blur=uniform(0.3, 1.3),
        screen=pick("none none none scan canvas halftone"), grain=uniform(2, 9), grain_size=uniform(1, 2.4),
        contrast=uniform(0, 0.7), handheld=uniform(0, 2.5), lift=uniform(0, 18, 3), gain=uniform(0.9, 1.08, 3),
    )  # fmt: skip
    return Film(index, seed, title, aspect, 16 / 9 if boxed and abs(aspect - 16 / 9) > 0.15 else aspect, d)


# ---------------------------------------------------------------- one shot


class Shot:
    """What of a shot need not be drawn again for each frame: set, glow, actors, foreground, weather (w x h px)."""

    def __init__(self, film: Film, number: int, w: int, h: int) -> None:
        self.d, self.w, self.h = film.d, w, h
        self.rng = rng = np.random.default_rng([film.seed, film.index, 4, number])
        self.img, self.glow = np.zeros((2, h, w, 3), np.uint8)
        self.set_light()
        framing = str(rng.choice(list(FRAMINGS), p=[f[0] for f in FRAMINGS.values()]))
        _, self.zoom, blur, size = FRAMINGS[framing] * rng.uniform([1, 0.85, 1, 0.88], [1, 1.2, 1, 1.12])
        self.hy = int(h * np.clip(self.d.horizon + rng.normal(0, 0.03), 0.3, 0.85))  # row of the horizon
        place = str(rng.choice(["tunnel", "columns", "wall", "drape", "outdoors"], p=self.d.sets))
        self.outdoors() if place == "outdoors" else self.indoors(place)
        weather = str(rng.choice(self.d.weather)) if place in ("outdoors", "columns") else "none"
        self.air(weather, 0.2 + self.d.blur * blur)
        self.fall = self.particles(weather) if weather in PARTICLES else None
        self.bleed = self.halation()  # half of it behind the figures, half over them
        self.img = cv2.add(self.img, self.bleed)
        count = {"wide": int(rng.integers(1, 4)), "full": int(rng.integers(1, 3)), "two": 2}.get(framing, 1)
        slots = np.linspace(0, 1, count + 2)[1:-1] + rng.uniform(-0.12, 0.12, count)
        self.actors = []  # sprite, x, y, sway, phase
        for who, slot in zip(rng.permutation(4).tolist(), slots, strict=False):
            tall = size * h * self.d.tall[who] ** (1 if size < 1 else 0.4)
            sprite, top = self.figure(who, tall, 0.3 if framing == "wide" else 0.0)
            feet = np.clip(self.hy + h * 0.2, tall * 1.16, h * 0.98) if size < 1 else h * 0.4 + tall * 0.92
            x, y = slot * w - sprite.shape[1] / 2, feet - top
            self.actors.append((sprite, x, y, rng.uniform(-1, 1, 2), rng.uniform(0, 6)))
        self.front = self.foreground() if rng.random() < self.d.fringe and self.d.foreground != "none" else None
        self.drift, self.exposure = rng.uniform(-1, 1, 2) * (2.2, 0.8), rng.uniform(0.88, 1.18)

    def set_light(self) -> None:
        """Hour, weather and exposure: zenith, horizon, key, shadow, lamp, each float32 [3] in 0..255."""
        looks, rng = np.array(LOOKS.replace(";", " ").split(), np.float32).reshape(-1, 5, 3), self.rng
        a, b = looks[rng.choice(self.d.looks)], looks[rng.integers(len(looks))]
        colours = (a + (b - a) * rng.uniform(0, 0.3)) * rng.uniform(0.85, 1.15) * rng.uniform(0.94, 1.06, 3)
        grey = colours.mean(1, keepdims=True)
        colours = np.clip(grey + (colours - grey) * self.d.saturation, 0, 255).astype(np.float32)
        self.zenith, self.horizon, self.key, self.shadow, self.lamp = colours
        self.side = int(rng.choice([-1, 1]))  # where the light comes from

    def paint(self, albedo: np.ndarray, depth: float = 0.0, light: float = 1.0) -> tuple[float, ...]:
        """RGB of a surface: shadow and key light on its albedo, lost in the haze with depth 0..1."""
        lit = self.shadow * 0.5 + self.key * albedo * (light * 1.15)
        return tuple(np.clip(lit + (self.horizon - lit) * min(0.95, depth * self.d.haze), 0, 255).tolist())

    def draw(self, shape, x, y, size, colour, glow: float = 0.0) -> None:
        stamp(self.img, shape, x, y, size, colour)
        if glow:
            stamp(self.glow, shape, x, y, size, tuple(glow * c for c in colour))

    def sign(self, x: float, y: float, size: float, lit: bool) -> None:
        """The film's emblem, as neon or as a painted mark."""
        colour = tuple(self.lamp.tolist()) if lit else self.paint(self.d.albedo[3] * 1.25, 0.1)
        self.draw(self.d.emblem, x, y, size, colour, float(lit))

    def sky(self, hy: int) -> None:
        d, w, h, rng = self.d, self.w, self.h, self.rng
        t = np.clip(np.arange(h) / max(hy, 1), 0, 1)[:, None, None] ** d.gradient
        self.img[:] = self.zenith * (1 - t) + self.horizon * t
        x, y = w * (0.5 + self.side * rng.uniform(0.12, 0.4)), hy * rng.uniform(0.15, 0.8)
        r, white = d.orb_size * h, tuple(np.minimum(self.key * 1.15, 255).tolist())
        if d.orb == "stars" or self.zenith.mean() < 40:
            for sx, sy, s in rng.random((90, 3)) * (w, hy, 200):
                cv2.circle(self.img, (int(sx), int(sy)), int(s > 190), (s + 50,) * 3, -1, cv2.LINE_AA)
        if d.orb not in ("none", "stars"):
            self.draw("porthole", x, y + r, 2 * r, white, 1.0)
        if d.orb == "twin":
            self.draw("porthole", x + 2 * r, y - r * 0.5, r, white)
        if d.orb == "ringed":
            axes = (int(r * 1.9), int(r * 0.4))
            cv2.ellipse(self.img, (int(x), int(y)), axes, -18, 0, 360, white, 2, cv2.LINE_AA)
        rows = (np.arange(h) * 256 / h + rng.integers(256)).astype(int) % 256
        cols = (np.arange(w) * d.cloud_long * 160 / h + rng.integers(256)).astype(int) % 256
        veil = np.clip((noise_tile()[rows][:, cols] - 0.95 + 0.6 * d.cloud) * 3, 0, 0.75)[..., None]
        self.img[:] = self.img + (self.horizon * 0.75 + self.key * 0.25 - self.img) * veil

    def ridge(self, kind: str) -> np.ndarray:
        """Height of a far silhouette at each column, about 0..1."""
        rng, x = self.rng, np.arange(self.w) / self.h
        soft = np.interp(x, np.linspace(0, x[-1], 9), rng.random(9))
        grids = [rng.random(8 * 2**k) / 2**k for k in range(4)]
        rough = sum(np.interp(x, np.linspace(0, x[-1], len(grid)), grid) for grid in grids) / 1.9
        cells, arc = rng.random(40)[(x * 9).astype(int)], 1 - abs((x * 9) % 1 * 2 - 1)
        return {
            "ridge": rough**1.3,
            "hills": 0.25 + 0.4 * np.sin(x * 2.3 + soft * 3) * soft,
            "dunes": 0.7 * abs(np.sin(x * 1.7 + 6 * soft[0])) ** 0.6,
            "mesa": np.round(soft * 2.6) / 2.6 + rough * 0.07,
            "towers": 0.25 + 0.75 * cells,
            "pines": 0.2 + 0.4 * soft + 0.25 * (1 - abs((x * 24) % 1 * 2 - 1)),
            "domes": 0.15 + 0.6 * np.sqrt(arc * (2 - arc)) * cells,
            "spires": 0.2 + 0.8 * arc**2 * cells,
            "sea": 0.02 + 0 * x,
        }[kind]

    def floor(self, hy: int) -> None:
        """The ground from row hy down, its pattern in perspective; wet ground mirrors what stands above."""
        d, w, h = self.d, self.w, self.h
        rows = np.arange(hy, h)
        near, far = np.float32(self.paint(d.albedo[1])), np.float32(self.paint(d.albedo[1], 0.8))
        t = (1 - (rows - hy) / (h - hy))[:, None, None] ** 2
        z = 1 / ((rows - hy) / h + 0.04)
        tile, scale = pattern(d.floor, 48, d.turn), 26 / self.zoom
        u = ((np.arange(w) - w / 2)[None] / h * z[:, None] * scale).astype(int) % 96
        v = (z * scale * 3.5 + self.rng.integers(96)).astype(int)[:, None] % 96
        fade = d.relief * np.clip((rows - hy) / (0.3 * h), 0, 1)[:, None]
        ground = (far * t + near * (1 - t)) * (1 + fade * (tile[v, u] / 255 - 0.5))[..., None]
        if d.wet:
            ripple = (3 * np.sin(rows * 0.9) * (rows - hy) / h).astype(int)
            mirror = self.img[np.maximum(2 * hy - 1 - rows, 0)[:, None], (np.arange(w)[None] + ripple[:, None]) % w]
            ground = ground * (1 - d.wet * 0.7) + mirror * (d.wet * 0.75)
        self.img[hy:] = np.clip(ground, 0, 255)

    def house(self, x: float, y: float, size: float, depth: float) -> None:
        d, rng = self.d, self.rng
        bw, bh, light = size * d.house[0], size * d.house[1] * rng.uniform(0.6, 1.1), rng.uniform(0.5, 0.9)
        x0, x1 = np.clip([x - bw / 2, x + bw / 2], 0, self.w).astype(int)
        y0, y1 = np.clip([y - bh, y], 0, self.h).astype(int)
        self.draw(d.roof, x, y - bh, (bw, bw * 0.8), self.paint(d.albedo[2], depth, light * 0.5))
        if x0 == x1 or y0 == y1:
            return
        wall, shade = self.img[y0:y1, x0:x1], int((x1 - x0) * rng.uniform(0.25, 0.4)) + 1
        wall[:] = self.paint(d.albedo[0], depth, light)
        (wall[:, :shade] if self.side > 0 else wall[:, -shade:])[:] = self.paint(d.albedo[0], depth, light * 0.55)
        print_on(wall, d.wall, d.cell * size * 0.3, d.turn, d.relief)
        step, night = max(7.0, d.storey * size), 0.6 if self.key.mean() < 190 else 0.12
        lamp, dark = tuple(self.lamp.tolist()), self.paint(d.albedo[2] * 0.3, depth)
        for wy in np.arange(y - bh + step * 1.05, y - step * 0.25, step)[:14]:
            for wx in np.arange(x - bw / 2 + step * 0.6, x + bw / 2 - step * 0.4, step * 0.95)[:14]:
                lit = rng.random() < d.lit * night
                self.draw(d.window, wx, wy, (step * 0.55, step * 0.72), lamp if lit else dark, float(lit))

    def thing(self, kind: str, x: float, y: float, size: float, depth: float) -> None:
        if kind == "house":
            return self.house(x, y, size, depth)
        albedo, light = self.d.albedo[sum(map(ord, kind)) % 2 * 2], self.rng.uniform(0.35, 0.7)
        self.draw(kind, x, y, size, self.paint(albedo, depth, light * 0.45))
        lean = self.side * size * 0.03  # the lit side
        self.draw(kind, x + lean, y, (size * 0.72, size * 0.97), self.paint(albedo, depth, light))

    def places(self, n: int) -> list[float]:
        """Where things stand across the frame: a film keeps to one arrangement."""
        rng, kind, half = self.rng, self.d.arrange, self.rng.uniform(0, 0.38, (n + 1) // 2)
        xs = {
            "row": np.linspace(0.02, 0.98, n) + rng.uniform(-0.5, 0.5) / n,
            "avenue": np.where(np.arange(n) % 2, rng.uniform(0, 0.26, n), rng.uniform(0.74, 1, n)),
            "lone": rng.choice([0.25, 0.75], 1),
            "mirror": np.r_[half, 1 - half],
            "crowd": rng.random(n),
        }[kind]
        return (xs * self.w).tolist()

    def outdoors(self) -> None:
        d, w, h, hy, rng = self.d, self.w, self.h, self.hy, self.rng
        self.sky(hy)
        for depth, kind in zip((0.85, 0.6), d.ridges * 2, strict=False):
            top = hy - self.ridge(kind) * h * rng.uniform(0.18, 0.36) * self.zoom**0.5
            mask = np.clip(np.arange(h)[:, None] - top[None] + 0.5, 0, 1)[..., None]
            self.img[:] = self.img + (np.float32(self.paint(d.albedo[2] * 0.7, depth)) - self.img) * mask
        main, other, odd = d.things
        for x in self.places(6):
            self.thing(main, x, hy + 2, h * self.zoom * rng.uniform(0.2, 0.32), 0.5)
        self.floor(hy)
        for depth, lower, size, n in ((0.28, 0.1, 0.42, 4), (0.08, 0.28, 0.66, 3)):
            for x in self.places(n):
                kind = (main, other, main, odd)[rng.integers(4)]
                self.thing(kind, x, hy + lower * (h - hy), h * self.zoom * size * rng.uniform(0.8, 1.15), depth)
        size = h * d.emblem_size * 0.7 * self.zoom**0.6
        self.sign(w * rng.uniform(0.2, 0.8), hy - h * rng.uniform(0, 0.2), size, rng.random() < 0.6)

    def indoors(self, kind: str) -> None:
        """A wall with windows, a tunnel of frames, rows of columns, or drapery."""
        d, w, h, hy, rng = self.d, self.w, self.h, self.hy, self.rng
        base, cell = min(h - 8, int(hy + 0.16 * h)), d.cell * h * self.zoom**0.7  # base: the foot of the wall
        lamp, dark = tuple(self.lamp.tolist()), self.paint(d.albedo[2] * 0.3)
        self.img[:] = self.paint(d.albedo[0], 0.1, 0.3 if kind == "tunnel" else 0.75)
        if kind == "tunnel":
            for k, size in enumerate(2.3 * 0.74 ** np.arange(10) * h * self.zoom**0.3):
                colour = self.paint(d.albedo[k % 2], k / 11, 0.35 + 0.5 * (k % 2)) if k < 9 else lamp
                self.draw(d.window, w / 2, hy + size * 0.45, (size * max(1, w / h * 0.75), size), colour, float(k == 9))
        elif kind == "columns":
            self.sky(base)
            for k, depth in enumerate((0.8, 0.55, 0.3, 0.05)):
                size, gap = h * (0.7 + 0.22 * k) * self.zoom**0.4, h * (0.2 + 0.13 * k) * self.zoom
                for x in np.arange(w / 2 - gap * 6.5, w, gap):
                    self.thing("column" if "house" in d.things else d.things[0], x, base + 6 * k, size, depth)
        elif kind == "drape":
            fold = np.sin(np.arange(w) / (cell * 0.8) + np.sin(np.arange(w) / 37)) * 0.3 + 0.8
            self.img[:] = np.clip(self.img * fold[None, :, None], 0, 255)
        if kind != "columns":
            amount = d.relief * (0.6 if kind == "tunnel" else 1)
            print_on(self.img, d.wall, cell, d.turn, amount, *rng.integers(0, 64, 2))
        if kind == "wall":
            n, size, foot = int(rng.integers(1, 4)), h * rng.uniform(0.38, 0.6) * self.zoom**0.6, base - h * 0.12
            view = tuple((self.horizon * 0.75 + self.lamp * 0.2).tolist())
            for x in (np.arange(n) + rng.uniform(0.3, 0.7)) * w / n:
                self.draw(d.window, x, foot, (size * 0.92, size * 1.12), self.paint(d.albedo[2] * 0.5))
                self.draw(d.window, x, foot - size * 0.06, (size * 0.76, size), view, 0.35)
                self.draw("pane", x, foot, (2, size), dark)
        if kind != "columns" or d.wet:
            self.floor(base)
        for x in self.places(3)[:3]:
            drop, size = h * rng.uniform(0.12, 0.3), h * d.emblem_size * 0.6
            self.draw("pane", x, drop, (1.5, drop), dark)
            self.sign(x, drop + size * 0.8, size * self.zoom**0.5, True)
        if rng.random() < 0.7:
            self.sign(w * rng.uniform(0.15, 0.85), base - h * 0.2, h * d.emblem_size * self.zoom, rng.random() < 0.3)

    def air(self, weather: str, blur: float) -> None:
        """Fog, shafts of light, light from one side, and depth of field, over the whole set."""
        w, h, rng = self.w, self.h, self.rng
        if weather == "fog":
            rows, cols = np.arange(h) * 180 // h, (np.arange(w) * 90 // h + rng.integers(256)) % 256
            veil = noise_tile()[rows][:, cols] * np.clip((np.arange(h)[:, None] - self.hy * 0.5) / h, 0, 0.5) * 1.5
            self.img[:] = self.img + (self.horizon - self.img) * veil[..., None]
        for x in rng.random(3 if self.d.shafts else 0) * w:
            lean = x - self.side * h * rng.uniform(0.3, 0.7)
            beam = np.int32([[x, 0], [x + h * 0.1, 0], [lean + h * 0.22, h], [lean, h]])
            cv2.fillPoly(self.glow, [beam], tuple((self.key * 0.16).tolist()))
        slope = np.linspace(0.74, 1.16, w, dtype=np.float32)[:: self.side, None]
        self.img = cv2.GaussianBlur(np.uint8(np.clip(self.img * slope, 0, 255)), (0, 0), blur)

    def halation(self) -> np.ndarray:
        """What glows bleeds, some lenses smear it into a streak: RGB uint8 to add."""
        small = cv2.resize(self.glow, (self.w // 4, self.h // 4), interpolation=cv2.INTER_AREA)
        bleed = cv2.addWeighted(cv2.GaussianBlur(small, (0, 0), 2), 0.5, cv2.GaussianBlur(small, (0, 0), 8), 0.8, 0)
        if self.d.streak:
            bleed = cv2.add(bleed, np.uint8(np.minimum(cv2.blur(small, (self.w // 6, 1)) * (0.6, 0.9, 1.3), 255)))
        return cv2.convertScaleAbs(cv2.resize(bleed, (self.w, self.h)), alpha=self.d.halation * 0.5)

    def figure(self, who: int, size: float, depth: float) -> tuple[np.ndarray, float]:
        """One of the cast, `size` px tall: premultiplied RGBA uint8, cut at the frame; px from its top to its feet."""
        d, rng, face = self.d, self.rng, int(self.rng.choice([-1, 0, 1]))
        w, h = min(self.w, int(size * 0.9) + 8), min(int(self.h * 1.7), int(size * 1.24) + 4)
        img, cx, top, wide = np.zeros((h, w, 4), np.uint8), w / 2, size * 1.22, d.build[who]

        def tint(albedo, light=1.0):
            return (*self.paint(albedo * d.light, depth, light), 255)

        def pixels(x, y):  # from body heights, counted from between the feet
            return np.array([cx + x * size, top - y * size])

        def part(shape, x, y, sx, sy, colour):
            stamp(img, shape, *pixels(x, y), (sx * size, sy * size), colour)

        def oval(x, y, a, b, colour, start=0, end=360):
            centre, axes = np.int32(16 * pixels(x, y)), np.maximum(np.int32([16 * size * a, 16 * size * b]), 8)
            cv2.ellipse(img, centre, axes, 0, start, end, colour, -1, cv2.LINE_AA, 4)

        outer, inner = tint(d.albedo[d.coats[who]], 0.8), tint(d.albedo[2] * 0.5, 0.6)
        body = shapes()[d.bodies[who % 2]]
        for k, polygon in reversed(list(enumerate(body))):
            part([polygon], 0, 0, wide, 1, inner if k else outer)
        for s in (-1, 1):  # arms: hanging, bent or raised
            elbow = np.array([s * (0.19 * wide + rng.uniform(0, 0.06)), 0.64 + rng.uniform(-0.03, 0.05)])
            high = 0.14 if rng.random() < 0.3 else -0.1
            hand = elbow + rng.uniform([-0.08 - 0.03 * s, -0.2], [0.08 - 0.03 * s, high])
            line = np.int32([16 * pixels(*joint) for joint in ((s * 0.125 * wide, 0.8), elbow, hand)])
            cv2.polylines(img, [line], False, outer, max(1, int(0.055 * size * wide)), cv2.LINE_AA, 4)
        print_on(img, d.cloth, d.cloth_cell * size, d.turn, 0.9)
        if d.badge:
            part(d.emblem, 0.03 * face, 0.63, 0.1, 0.1, tint(d.albedo[3] * 1.5))
        # head
        (rx, ry), skin, hair = d.head, np.float32([0.95, 0.72, 0.58]) * d.skin[who], tint(d.albedo[3] * 0.35, 0.8)
        hy, name, mid = 0.845 + ry, d.hair[who % 2], face * rx * 0.25
        part("pane", 0, 0.8, 0.09, 0.1, tint(skin, 0.55))
        if name == "afro":
            oval(0, hy + ry * 0.3, rx * 1.7, ry * 1.3, hair)
        elif name == "long":
            part("arch", 0, hy - ry * 1.8, rx * 3, ry * 3, hair)
        oval(0, hy, rx, ry, tint(skin, 0.95))
        oval(0, hy, rx, ry, tint(skin, 0.55), *((90, 270) if self.side > 0 else (-90, 90)))
        for k in range(-3, 4) if name == "spikes" else ():
            spike = np.float32([[-0.3, 0], [0.3, 0], [k * 0.2, 1]])
            part([spike], k * rx * 0.3, hy + ry * 0.5, rx * 0.7, ry * 1.1, hair)
        if name != "spikes":
            oval(0, hy + ry * 0.25, rx * 1.04, ry * 0.8, hair, 180, 360)
        if size > 60:
            self.features(part, oval, tint, skin, hair, rx, ry, hy, mid)
        part(d.hats[who // 2], 0, hy + ry * 0.42, rx * 2.15, ry * 1.35, tint(d.albedo[d.coats[who] - 1] * 0.8, 0.7))
        # light: shade across the body, and a rim on the side of the light
        alpha, shade = img[..., 3:], np.linspace(0.62, 1.12, w, dtype=np.float32)[:: self.side, None]
        rim = cv2.subtract(img[..., 3], np.roll(img[..., 3], -self.side * max(1, round(size * 0.012)), 1))[..., None]
        img[..., :3] = np.minimum(img[..., :3] * shade + rim / 255 * (self.key * d.rim * (1 - depth)), alpha)
        return img, top

    def features(self, part, oval, tint, skin, hair, rx, ry, hy, mid) -> None:
        """Eyes in the manner of the film, a nose and a mouth."""
        eyes, dark, white = self.d.eyes, tint(np.float32([0.05] * 3), 0.3), tint(np.float32([1.0] * 3))
        if eyes == "mask":
            part("band", mid, hy - ry * 0.3, rx * 2, ry * 0.65, dark)
        elif eyes == "shadow":
            oval(0, hy + ry * 0.12, rx, ry * 0.5, tint(skin, 0.2))
        for x in (mid - rx * 0.42, mid + rx * 0.42):
            if eyes in ("glasses", "goggles", "wide"):
                oval(x, hy, rx * 0.36, rx * (0.26 if eyes == "wide" else 0.36), white)
            if eyes == "shades":
                part("trapeze", x, hy + ry * 0.16, rx * 0.75, -ry * 0.34, dark)
            elif eyes == "slits":
                oval(x, hy, rx * 0.28, ry * 0.05, dark)
            else:
                pupil = rx * (0.26 if eyes == "goggles" else 0.14)
                oval(x + mid * 0.3, hy, rx * 0.12, pupil, white if eyes == "mask" else dark)
            oval(x, hy + ry * 0.3, rx * 0.26, ry * 0.035, hair)
        part("steep", mid * 1.4, hy - ry * 0.35, rx * 0.25, ry * 0.22, tint(skin, 0.5))
        oval(mid, hy - ry * 0.58, rx * 0.3, ry * 0.05, tint(skin * np.float32([0.8, 0.4, 0.4]), 0.6))

    def foreground(self) -> np.ndarray:
        """What stands between the lens and the scene: premultiplied RGBA, out of focus."""
        d, w, h, rng, kind = self.d, self.w, self.h, self.rng, self.d.foreground
        img, dark, side = np.zeros((h, w, 4), np.uint8), (*(self.shadow * 0.6).tolist(), 255), int(rng.choice([-1, 1]))
        if kind == "blinds":
            for y in np.arange(0, h, h * 0.11):
                cv2.rectangle(img, (0, int(y)), (w, int(y + h * 0.03)), dark, -1)
        elif kind == "branches":
            for k in range(3):
                x = w * (0.5 + side * (0.5 - 0.12 * k))
                stamp(img, "bare", x, -0.1 * h, (h * 1.1, -h * rng.uniform(0.4, 0.8)), dark)
        elif kind in ("railing", "fence"):
            post, gap, thick, y = ("pane", 0.12, 0.03, 0.78) if kind == "railing" else ("lancet", 0.3, 0.12, 0.68)
            y *= h
            cv2.rectangle(img, (0, int(y)), (w, int(y + h * 0.05)), dark, -1)
            for x in np.arange(rng.uniform(0, 30), w, h * gap):
                stamp(img, post, x, h, (h * thick, h * 1.08 - y), dark)
        elif kind in ("pipes", "cables"):
            sag, thick = (0.25, 0.012) if kind == "cables" else (0, 0.045)
            for k in range(4):
                y = h * (0.04 + 0.07 * k + sag * rng.uniform(0.3, 1) * np.sin(np.linspace(0, np.pi, 20)))
                curve = np.int32(np.stack([np.linspace(0, w, 20), y], 1))
                cv2.polylines(img, [curve], False, dark, int(h * thick), cv2.LINE_AA)
        elif kind == "arch":
            img[:] = dark
            stamp(img, d.window, w / 2, h * 1.2, (w * 1.2, h * 1.4), (0, 0, 0, 0))
        elif kind == "curtain":
            fold = 0.7 + 0.5 * np.sin(np.arange(w) / 9)
            img[..., :3] = np.clip(np.float32(self.paint(d.albedo[3], 0, 0.4)) * fold[:, None], 0, 255)
            img[..., 3] = 255
            img[:, slice(int(w * 0.22), w) if side < 0 else slice(0, int(w * 0.78))] = 0
        elif kind in ("reed", "palm"):
            for x in np.arange(0, w, h * 0.22):
                stamp(img, kind, x, h * 1.1, (h * 0.5, h * rng.uniform(0.2, 0.45)), dark)
        else:  # bokeh
            for x, y in rng.random((9, 2)) * (w, h):
                stamp(img, d.window, x, y, h * 0.11, (*(self.lamp * 0.3).tolist(), 80))
        return cv2.GaussianBlur(img, (0, 0), 2.2)

    def particles(self, kind: str) -> np.ndarray:
        """Rain, snow, dust or embers: RGB uint8 to add, twice the height so that it can fall."""
        img, colour = np.zeros((2 * self.h, self.w, 3), np.uint8), tuple((self.key * 0.4 + 20).tolist())
        for x, y, s in self.rng.random((PARTICLES[kind], 3)) * (self.w, self.h, 1):
            for y0 in (y, y + self.h):
                if kind == "rain":
                    cv2.line(img, (int(x), int(y0)), (int(x - 3), int(y0 + 10 + 12 * s)), colour, 1, cv2.LINE_AA)
                else:
                    warm = (255, 150, 50) if kind == "embers" else colour
                    cv2.circle(img, np.int32([x * 16, y0 * 16]), int(10 + 22 * s * s), warm, -1, cv2.LINE_AA, 4)
        return img


# ---------------------------------------------------------------- frames


def stock(film: Film, w: int, h: int) -> tuple[np.ndarray, np.ndarray]:
    """What every frame of a film shares: vignette and screen uint8 [h, w, 3], grain tile uint8 [h + 64, w + 64, 3]."""
    d, rng = film.d, np.random.default_rng([film.seed, film.index, 5])
    x, y = np.arange(w)[None], np.arange(h)[:, None]
    r2 = ((2 * x / w - 1) ** 2 + (2 * y / h - 1) ** 2) / 2
    shade = 1 - d.vignette * r2 ** (d.vignette_power / 2)
    shade *= {
        "none": 1,
        "scan": 1 - 0.2 * (y % 3 == 0),
        "canvas": 0.86 + 0.07 * (x % 4 < 2) + 0.07 * (y % 4 < 2),
        "halftone": 0.9 + 0.1 * np.sin((x + y) * 1.3) * np.sin((x - y) * 1.3),
    }[d.screen]
    small = rng.normal(0, d.grain, (int((h + 64) / d.grain_size), int((w + 64) / d.grain_size))).astype(np.float32)
    grain = np.clip(cv2.resize(small, (w + 64, h + 64)) + int(3 * d.grain), 0, 255)
    return np.uint8(255 * shade[..., None] * np.ones(3)), np.uint8(grain[..., None] * np.ones(3))


def frame_size(film: Film) -> tuple[int, int, int, int]:
    """Frame width, frame height, picture width, picture height in px; 2.35 is the original's 600x256."""
    width = 600 if film.container == 2.35 else round(HEIGHT * film.container)
    if film.aspect > film.container:
        return width, HEIGHT, width, 2 * round(width / film.aspect / 2)
    return width, HEIGHT, width if film.aspect == film.container else 2 * round(HEIGHT * film.aspect / 2), HEIGHT


def shift(img: np.ndarray, dx: float, dy: float, w: int, h: int, *, lean: float = 0.0) -> np.ndarray:
    """The w x h window on a layer that moved by (dx, dy) and leans about its foot."""
    return cv2.warpAffine(img, np.float64([[1, -lean, dx + lean * img.shape[0]], [0, 1, dy]]), (w, h))


def fringe(img: np.ndarray, amount: float) -> np.ndarray:
    """Lateral chromatic aberration: red a little larger, blue a little smaller, by `amount` px at the sides."""
    h, w = img.shape[:2]
    red, green, blue = cv2.split(img)
    for channel, zoom in ((red, 1 + 2 * amount / w), (blue, 1 - 2 * amount / w)):
        about_middle = np.float64([[zoom, 0, (1 - zoom) * w / 2], [0, zoom, (1 - zoom) * h / 2]])
        channel[:] = cv2.warpAffine(channel, about_middle, (w, h), borderMode=cv2.BORDER_REPLICATE)
    return cv2.merge([red, green, blue])


def over(below: np.ndarray, rgba: np.ndarray) -> np.ndarray:
    """Premultiplied RGBA laid on an RGB image of the same size."""
    inverse = cv2.cvtColor(255 - rgba[..., 3], cv2.COLOR_GRAY2RGB)
    return cv2.add(cv2.multiply(below, inverse, scale=1 / 255), cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB))


def render_film(film: Film, frames: int, shots: int) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yields (frame uint8 RGB [H, W, 3], shot, shot_time_ms): `frames` of them, spread evenly over `shots`."""
    d, (fw, fh, w, h) = film.d, frame_size(film)
    shade, grain = stock(film, w, h)
    clock, number, ramp, m = 0, -1, np.linspace(0, 1, 256)[:, None], MARGIN
    for k in range(frames):
        if number != k * shots // frames:
            number, step = k * shots // frames, 0
            s = Shot(film, number, w + 2 * m, h + 2 * m)
            clock += int(s.rng.integers(4_000, 90_000))
            curve = ramp * s.exposure
            curve = curve + d.contrast * (curve * curve * (3 - 2 * curve) - curve)
            lut = np.uint8(np.clip(curve * 255 * d.gain + d.lift, 0, 255))[:, None]
        dx, dy = np.clip(s.drift * (step - 2.5) + s.rng.normal(0, 0.4, 2) * d.handheld, -9, 9)
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
        if d.mono:
            img = cv2.cvtColor(cv2.cvtColor(img, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        if d.fringing:
            img = fringe(img, d.fringing)
        img = cv2.LUT(cv2.multiply(img, shade, scale=1 / 255), lut)
        gx, gy = s.rng.integers(0, 64, 2)
        img = cv2.subtract(cv2.add(img, grain[gy : gy + h, gx : gx + w]), (int(3 * d.grain),) * 4)
        x, y = (fw - w) // 2, (fh - h) // 2
        yield cv2.copyMakeBorder(img, y, fh - h - y, x, fw - w - x, cv2.BORDER_CONSTANT), number, clock
        step, clock = step + 1, clock + int(s.rng.integers(200, 500))


def write_film(index: int, *, out: Path, frames: int, seed: int, per_shot: int) -> str:
    """Writes one film's folder, whole or not at all; a film that is complete stays as it is. Returns its title."""
    cv2.setNumThreads(1)
    film, shots = film_design(index, seed), max(1, -(-frames // per_shot))
    folder, part = out / film.title, out / f".{film.title}.part"
    if (folder / "frames.jsonl").exists():
        rows = [json.loads(line) for line in (folder / "frames.jsonl").read_text(encoding="utf-8").splitlines()]
        whole = len(rows) == frames and len({row["shot"] for row in rows}) == shots
        if whole and all((folder / row["file"]).exists() for row in rows):
            return film.title
        shutil.rmtree(folder)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with open(part / "frames.jsonl", "w", encoding="utf-8") as sidecar:
        for k, (img, shot, ms) in enumerate(render_film(film, frames, shots)):
            name, (height, width) = f"{index:04d}{k:05d}", img.shape[:2]
            data = cv2.imencode(".jpg", cv2.cvtColor(img, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
            (part / f"{name}.jpg").write_bytes(data.tobytes())
            row = {"file": f"{name}.jpg", "id": name, "url": None, "shot_time_ms": ms, "shot": shot}
            sidecar.write(json.dumps(row | {"width": width, "height": height, "source": "rendered"}) + "\n")
    os.replace(part, folder)
    return film.title


def render_films(
    out: Path, indices: Iterable[int], frames: int, seed: int = 13, workers: int | None = None, per_shot: int = 6
) -> list[str]:
    """Renders films to out/<Title (Year)>/<id>.jpg and frames.jsonl; returns their titles in the order of indices."""
    indices, work = list(indices), partial(write_film, out=Path(out), frames=frames, seed=seed, per_shot=per_shot)
    workers = min(workers or os.cpu_count() or 1, len(indices))
    if workers <= 1:
        return [work(index) for index in tqdm(indices, desc="render", unit="film", disable=None)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(work, index) for index in indices]
        for job in tqdm(as_completed(jobs), total=len(jobs), desc="render", unit="film", disable=None):
            job.result()  # an error in a film stops the run
    return [job.result() for job in jobs]


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
    print(f"{len(titles)} films in {args.out}")
    print(f"next: python filter.py {args.out} --detector none")
    return 0


if __name__ == "__main__":
    sys.exit(main())
