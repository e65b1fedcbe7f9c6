// Command sidekey issues tokens in one place and checks them beside every service. The folder is the composition
// root: it reads flags, environment and config.toml into one Config, builds the parts and runs them, and it is the
// operators' command line. It has no logic of the domain.
//
//	main.go                     the command tree and the exit status
//	config*.go                  Config: its keys, their defaults, where they are read from, what is refused
//	flags.go                    the flag of each key
//	daemon.go                   what dev, issuer and agent have in common
//	issuer.go agent.go dev.go   the daemons, in the order of their start
//	files.go listen.go          the files in data_dir; listeners, and how a server ends
//	client.go                   the HTTP client of the commands below
//	users.go keys.go revoke.go token.go status.go
//	secret.go output.go         secrets as arguments; tables, JSON, the log
//
// Exit status: 0 done, 1 refused or failed, 2 usage. Errors go to standard error, one sentence that says what to do.
// Tests run the command line in memory (cli_test.go), and as processes in the stories of testdata/script.
package main
