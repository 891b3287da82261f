"""Where in a film a clip lies: the one offset in time on which most of its frames agree."""

from dataclasses import dataclass

import numpy as np

NEAR_SIMILARITY = 0.1  # less than a frame's nearest still: other stills so like it may be the moment, too
MATCHES = 5  # stills of a film that a frame may be at, at most
LEAST_TOLERANCE_MS = 2000
MOST_TOLERANCE_MS = 15_000  # keyframes lie 10 s apart at most, and a frame may look like either neighbour
LEAST_AGREEING = 0.4  # of the frames
SPEEDS = (1.0, 25 / 24, 24 / 25)  # of the clip against the film: television in Europe plays 24 frames as 25


@dataclass(frozen=True)
class Alignment:
    """An offset in time between a clip and a film, and the frames that speak for it."""

    offset_ms: int  # time in the film of the clip's start
    speed: float  # film time that passes while a unit of the clip's passes
    rows: np.ndarray  # int [N]: the still that each frame is matched with; -1 for a frame that disagrees

    @property
    def is_agreed(self) -> bool:
        """Whether enough frames agree to tell the moment."""
        return self.agreeing >= max(2, LEAST_AGREEING * len(self.rows))

    @property
    def agreeing(self) -> int:
        """Frames that agree."""
        return int((self.rows >= 0).sum())

    @property
    def stills(self) -> int:
        """Different stills that they are matched with: one still alone is matched at any offset near it."""
        return len(np.unique(self.rows[self.rows >= 0]))

    def place(self, time_ms: float) -> int:
        """Milliseconds into the film of a time in the clip."""
        return max(0, round(self.offset_ms + self.speed * time_ms))


@dataclass(frozen=True)
class Matches:
    """Pairs [P] of a frame of the clip and a still that is like it."""

    frame: np.ndarray  # int [P]
    row: np.ndarray  # int [P]
    similarity: np.ndarray  # float [P]
    time_ms: np.ndarray  # float [P]: of the frame, in the clip
    from_ms: np.ndarray  # float [P]: where in the film the still's picture begins
    to_ms: np.ndarray  # float [P]: and where its last near-duplicate is


def find_tolerance(from_ms: np.ndarray, to_ms: np.ndarray) -> float:
    """Milliseconds by which offsets may differ, from how far apart a film's stills lie: [n] in order of time."""
    gaps = from_ms[1:] - to_ms[:-1]
    usual = float(np.quantile(gaps, 0.9)) if len(gaps) else 0.0
    return float(np.clip(usual, LEAST_TOLERANCE_MS, MOST_TOLERANCE_MS))


def align(similarity: np.ndarray, time_ms: np.ndarray, from_ms: np.ndarray, to_ms: np.ndarray) -> Alignment | None:
    """The offset that most frames of a clip agree on; None where the film's stills have no times.

    similarity: [N, n], of the clip's frames to a film's stills; time_ms: [N], in the clip; from_ms, to_ms: [n], when a
    still's picture is seen in the film, -1 where not known.
    """
    known = np.flatnonzero(from_ms >= 0)
    if not len(known) or not len(time_ms):
        return None
    known = known[np.argsort(from_ms[known], kind="stable")]
    start, end = from_ms[known].astype(float), to_ms[known].astype(float)
    tolerance = find_tolerance(start, end)
    matches = find_matches(similarity[:, known], time_ms, start, end)
    best = None
    for speed in SPEEDS:
        if speed != 1 and abs(speed - 1) * np.ptp(time_ms) < 2 * tolerance:
            continue  # too short a clip to tell
        found = vote(matches, speed, tolerance, len(time_ms))
        if best is None or found.agreeing > best.agreeing:
            best = found
    rows = np.where(best.rows >= 0, known[best.rows], -1)
    return Alignment(best.offset_ms, best.speed, rows)


def find_matches(similarity: np.ndarray, time_ms: np.ndarray, start: np.ndarray, end: np.ndarray) -> Matches:
    """The few stills that each frame is most like. Arguments as align takes them, start and end known and in order."""
    count = min(MATCHES, similarity.shape[1])
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    value = np.take_along_axis(similarity, nearest, axis=1)
    frame, place = np.nonzero(value >= value[:, :1] - NEAR_SIMILARITY)
    row = nearest[frame, place]
    return Matches(frame, row, value[frame, place], time_ms[frame].astype(float), start[row], end[row])


def vote(matches: Matches, speed: float, tolerance: float, frames: int) -> Alignment:
    """The offset with most votes at one speed; a frame votes by its similarity, once."""
    first = matches.from_ms - speed * matches.time_ms  # offsets from first to last explain a pair
    last = matches.to_ms - speed * matches.time_ms
    best_votes = -1.0
    offset = 0.0
    for candidate in np.unique(np.concatenate([first, last])):
        votes = np.zeros(frames)
        near = distance(candidate, first, last) <= tolerance
        np.maximum.at(votes, matches.frame[near], np.maximum(matches.similarity[near], 1e-3))
        if votes.sum() > best_votes:
            best_votes = votes.sum()
            offset = candidate
    near = np.flatnonzero(distance(offset, first, last) <= tolerance)
    rows = choose_rows(matches, near, frames)
    chosen = near[matches.row[near] == rows[matches.frame[near]]]
    return Alignment(round(settle(first[chosen], last[chosen])), speed, rows)


def distance(offset: float, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """How far an offset is from intervals [P]; 0 inside."""
    return np.maximum(np.maximum(first - offset, offset - last), 0)


def choose_rows(matches: Matches, near: np.ndarray, frames: int) -> np.ndarray:
    """For each frame the still that it is most like, among the pairs of these numbers; -1 where there is none."""
    rows = np.full(frames, -1)
    for pair in near[np.argsort(matches.similarity[near], kind="stable")]:
        rows[matches.frame[pair]] = matches.row[pair]
    return rows


def settle(first: np.ndarray, last: np.ndarray) -> float:
    """The offset with the least sum of distances to intervals [P]: the middle of their ends, a median."""
    ends = np.sort(np.concatenate([first, last]))
    return float(ends[len(first) - 1] + ends[len(first)]) / 2
