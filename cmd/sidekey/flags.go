package main

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// keyFlag is the flag of one configuration key. It keeps the text; loadConfig applies it over file and environment.
type keyFlag struct {
	field field
	texts map[string]string // app.flags
}

// Set implements pflag.Value. It tries the text at once, so that a wrong one is a usage error.
func (k *keyFlag) Set(text string) error {
	if err := k.field.setText(text); err != nil {
		return err
	}
	k.texts[k.field.key] = text
	return nil
}

// String implements pflag.Value: no default is shown, since file and environment may give one.
func (k *keyFlag) String() string { return k.texts[k.field.key] }

// Type implements pflag.Value.
func (k *keyFlag) Type() string { return k.field.kind() }

// addKeyFlags gives flags a flag for each configuration key in names; a table's name stands for all its keys.
func (a *app) addKeyFlags(flags *pflag.FlagSet, names ...string) {
	scratch := defaultConfig()
	for _, f := range configFields(&scratch) {
		if f.kind() == "table" {
			continue
		}
		table, _, _ := strings.Cut(f.key, ".")
		for _, name := range names {
			if (name == f.key || name == table) && !f.isMap() {
				flags.Var(&keyFlag{field: f, texts: a.flags}, strings.TrimPrefix(f.flag(), "--"), f.help)
			}
		}
	}
}

// config loads the configuration of this run over base.
func (a *app) config(base Config) (Config, error) {
	path := a.configPath
	if path == "" {
		path = lookupEnv(a.environ, envConfig)
	}
	return loadConfig(base, sources{path: path, environ: a.environ, flags: a.flags})
}

func (a *app) configCommand() *cobra.Command {
	check := &cobra.Command{
		Use:   "check",
		Short: "Read the configuration file alone, and say ok or what is wrong with it",
		Long: "Read the file that --config names and nothing else: no variable and no flag. " +
			"It prints ok, or the first error with its line.",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			path := a.configPath
			if path == "" {
				path = lookupEnv(a.environ, envConfig)
			}
			if path == "" {
				return usagef("name the file to check with --config FILE")
			}
			if _, err := loadConfig(defaultConfig(), sources{path: path}); err != nil {
				return err
			}
			return a.say("ok")
		},
	}
	return group("config", "The configuration file", check)
}
