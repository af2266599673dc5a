"""The example of `make run`."""


def handler(event, context):
    """Greets the world, or whom the event names: {"name": "Ada"}."""
    name = event.get("name", "world") if isinstance(event, dict) else "world"
    return {"message": f"hello, {name}"}
