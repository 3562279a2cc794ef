"""A configuration to a trained run and back: parts are built, experiments fitted, runs loaded, judged and shown.

Every other room is used here and none is known better than by its public names; nothing is computed that a room below
should.
"""
