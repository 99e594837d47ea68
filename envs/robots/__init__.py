"""Robots that several tasks use: the two-finger hand on slides, the UR5e arm and the Adroit hand. A
robot has its model, its commands and what it senses; what is done with it belongs in ``tasks``."""
