"""Malformed and malicious requests and files, sent to a server that must refuse them; and a fuzzer."""
