"""Stands in for `prefdata.engines.vllm_worker`: the same messages, no vLLM. What its settings hold decides how it ends."""

import json
import os
import signal
import socket
import sys

MISBEHAVE = 5  # a seed that does


def main() -> None:
    with socket.socket(fileno=int(sys.argv[1])) as pipe, pipe.makefile("rw") as lines:

        def send(**message: object) -> None:
            lines.write(json.dumps(message) + "\n")
            lines.flush()

        settings = json.loads(lines.readline())
        if "refuse" in settings:
            print("(EngineCore pid=7) ERROR ValueError: heads of size 7 have no kernel", flush=True)
            send(refused=settings["refuse"])
            return
        send(positions=50)
        for line in lines:
            for number, (_, limit, seed, n) in reversed(list(enumerate(json.loads(line)["requests"]))):
                if seed == MISBEHAVE and settings["then"] == "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                if seed == MISBEHAVE and settings["then"] == "raise":
                    raise ValueError("no more blocks")
                logp = float("nan") if seed == MISBEHAVE and settings["then"] == "nan" else -0.5
                for index in reversed(range(n)):
                    send(sample=[number, index, [seed + index] * limit, "length", [logp] * limit])


if __name__ == "__main__":
    main()
