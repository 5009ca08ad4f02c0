"""JSON objects of the gateway's responses, as typed dictionaries.

At run time they are the plain dictionaries that the gateway sent: None is JSON's null, times (`created_at`, …) are Unix
seconds, durations are seconds. Names and fields are those of `GET /openapi.json`; a test compares them.
"""
