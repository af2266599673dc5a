"""Updates while traffic runs: no request fails, and after Successful nothing old answers."""

import threading

from tests.cluster.cluster import archive, call


def source(number):
    return f"def handler(event, context):\n    return {number}\n"


def test_update_of_code_during_traffic(functions, client, cluster):
    name = functions.make(source(0))
    answers: list[tuple[int, int]] = []      # (newest version known to serve before the request, its answer)
    failures: list[Exception] = []
    settled = 0
    stop = threading.Event()

    def drive():
        own = cluster.client()
        try:
            while not stop.is_set():
                before = settled
                try:
                    answers.append((before, call(own, name).payload))
                except Exception as error:  # noqa: BLE001 - the test reports whatever it was
                    failures.append(error)
        finally:
            own.close()

    drivers = [threading.Thread(target=drive) for _ in range(3)]
    for driver in drivers:
        driver.start()
    try:
        for number in range(1, 4):
            client.update_function_code(FunctionName=name, ZipFile=archive({"app.py": source(number)}))
            functions.settle(name)
            settled = number
            assert call(client, name).payload == number
    finally:
        stop.set()
        for driver in drivers:
            driver.join(30)
    assert not failures
    assert answers
    assert all(answer >= before for before, answer in answers), "an update that was Successful answered with old code"


def test_update_of_configuration_makes_new_sandboxes(functions, client):
    name = functions.make("import os\ndef handler(event, context):\n    return os.environ.get('COLOUR')\n")
    assert functions.call(name).payload is None
    client.update_function_configuration(FunctionName=name, Environment={"Variables": {"COLOUR": "red"}})
    functions.settle(name)
    assert functions.call(name).payload == "red"
