"""Where the windows of a long text begin."""

from __future__ import annotations

from adaptrain.tasks.windows import window_starts


def test_windows_by_hand() -> None:
    assert list(window_starts(10, 4, 2)) == [0, 2, 4, 6]
    assert list(window_starts(4, 4, 2)) == [0] and list(window_starts(5, 4, 2)) == [0, 2]
    for count in range(1, 30):
        for room in range(1, 8):
            for shared in range(room // 2 + 1):
                starts = list(window_starts(count, room, shared))
                covered = {at for start in starts for at in range(start, min(start + room, count))}
                assert covered == set(range(count)), "every token is in a window"
                assert len(starts) == 1 or starts[-2] + room < count, "and no window is there for nothing"
