"""Pictures that the bot's users confirmed, in the table offered: accepted, pending, or refused and never offered again.

A picture's name is made of its user and its answer, see learn.py; a refused one keeps its name alone.
"""

from dataclasses import dataclass

from answering.store import Collection


@dataclass(frozen=True)
class Offer:
    """A picture that a user sent."""

    name: str
    film: str  # a title
    state: str  # "accepted", "pending" or "refused"
    picture: bytes | None  # None of refused ones


class Offers:
    """The table offered of a collection."""

    def __init__(self, collection: Collection):
        self.home = collection.home

    def names(self) -> list[tuple[str, str]]:
        """(name, film) of every picture that was ever offered."""
        return self.home.execute("SELECT name, film FROM offered")

    def pending(self) -> list[Offer]:
        """Pictures to choose from, by film."""
        return self.select("state = ?", "pending")

    def accepted(self, title: str) -> list[Offer]:
        """A film's accepted pictures."""
        return self.select("state = 'accepted' AND film = ?", title)

    def select(self, where: str, value: str) -> list[Offer]:
        query = f"SELECT name, film, state, picture FROM offered WHERE {where} ORDER BY film, name"
        return [Offer(*row[:3], None if row[3] is None else bytes(row[3])) for row in self.home.execute(query, [value])]

    def put(self, name: str, film: str, state: str, picture: bytes | None) -> None:
        with self.home.transaction():
            self.home.execute("DELETE FROM offered WHERE name = ?", [name])
            row = [name, film, state, picture]
            self.home.execute("INSERT INTO offered (name, film, state, picture) VALUES (?, ?, ?, ?)", row)

    def accept(self, name: str) -> None:
        self.home.execute("UPDATE offered SET state = 'accepted' WHERE name = ?", [name])

    def refuse(self, name: str) -> None:
        """Put away a picture that the collection shall not have."""
        self.home.execute("UPDATE offered SET state = 'refused', picture = NULL WHERE name = ?", [name])

    def refuse_accepted(self) -> None:
        self.home.execute("UPDATE offered SET state = 'refused', picture = NULL WHERE state = 'accepted'")

    def forget(self, giver: str) -> int:
        """Take out all pictures of a user, whatever their state; how many there were.

        giver: state.hashed_name of the user, with which the names of his pictures begin.
        """
        found = self.home.execute("SELECT name FROM offered WHERE name LIKE ?", [f"{giver}-%"])
        self.home.execute("DELETE FROM offered WHERE name LIKE ?", [f"{giver}-%"])
        return len(found)
