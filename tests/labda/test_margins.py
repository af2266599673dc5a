"""`labda status`: what the loss of each AZ would leave."""

from labda.commands import status

AZS = ["az1", "az2", "az3"]


def row(*margins_mb):
    margins = [{"az": az, "margin_mb": mb, "manager": "m1"} for az, mb in zip(AZS, margins_mb, strict=False)]
    return status._margin_row(margins, AZS, 40)


def test_an_operator_sees_what_is_to_spare_and_what_is_missing():
    [line] = row(5898, 0, -1536)
    assert line.split("  ")[0] == "if it is lost"
    assert [cell.strip() for cell in line[16:].split("  ") if cell.strip()] == [
        "5,898 MB to spare", "0 MB to spare", "SHORT BY 1,536 MB: add workers"
    ]


def test_with_workers_in_one_az_only_there_is_nothing_to_say():
    assert row() == []
