import threading
from pathlib import Path

from medpclip.files import write_atomically


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    contents = [bytes([n]) * 50_000 for n in (1, 2)]
    faults: list[object] = []
    done = threading.Event()

    def write(content: bytes) -> None:
        try:
            for _ in range(40):
                write_atomically(tmp_path / "f", content)
        except OSError as error:
            faults.append(error)

    def read() -> None:
        while not done.is_set():
            found = (tmp_path / "f").read_bytes() if (tmp_path / "f").exists() else contents[0]
            if found not in contents:
                faults.append(len(found))

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    reader = threading.Thread(target=read)
    for thread in (*threads, reader):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    reader.join()
    assert not faults and [path.name for path in tmp_path.iterdir()] == ["f"]
