"""The wire protocol between services: .proto files and the modules generated from them."""
