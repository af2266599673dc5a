"""The version that people see."""

VERSION = "0.1"
