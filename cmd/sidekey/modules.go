package main

// Schemes of one's own are built in by a blank import here, which registers them (docs/authenticators.md):
//
//	import _ "example.com/sidekey-partner"
//
// A fork need change nothing else: agent.authenticators then knows the name, and [agent.schemes.NAME] is its configuration.
