package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

// maxConfigFile bounds the file that is read: a config is a page or two.
const maxConfigFile = 1 << 20

// sources is where a configuration comes from. The zero value gives the defaults.
type sources struct {
	path    string            // of the file; empty: none
	environ []string          // as os.Environ
	flags   map[string]string // text by key
}

// loadConfig puts base, the file, the environment and the flags together, each stronger than the one before, fills
// the derived defaults and validates. An error is one sentence and begins with the place to mend.
func loadConfig(base Config, from sources) (Config, error) {
	c := base
	c.origin = map[string]string{}
	fields := configFields(&c)
	if from.path != "" {
		text, err := readConfigFile(from.path)
		if err != nil {
			return Config{}, err
		}
		if err := applyFile(&c, fields, from.path, text); err != nil {
			return Config{}, err
		}
	}
	if err := applyEnviron(&c, fields, from.environ); err != nil {
		return Config{}, err
	}
	for _, f := range fields {
		text, ok := from.flags[f.key]
		if !ok {
			continue
		}
		if err := f.setText(text); err != nil {
			return Config{}, fmt.Errorf("%s: %w", f.flag(), err)
		}
		c.origin[f.key] = f.flag()
	}
	c.masterKeyFile = findMasterKey(from.environ)
	c.findUserSecrets(from.environ)
	c.resolve()
	if err := c.validate(); err != nil {
		return Config{}, err
	}
	return c, nil
}

func readConfigFile(path string) (string, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("reading config: no file %q; name one with --config", path)
	}
	if err != nil {
		return "", fmt.Errorf("reading config: %w", err)
	}
	if info.Size() > maxConfigFile {
		return "", fmt.Errorf("reading config: %q is over %d bytes, so it is no config", path, maxConfigFile)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading config: %w", err)
	}
	return string(text), nil
}

// applyFile sets what the file says. Tables are read one by one and each leaf on its own, not into the struct:
// the library would match a key whatever its case, and take a bare number as nanoseconds.
func applyFile(c *Config, fields []field, path, text string) error {
	var top map[string]toml.Primitive
	md, err := toml.Decode(text, &top)
	if err != nil {
		return atLine(path, err)
	}
	tables := map[string]map[string]toml.Primitive{"": top}
	for _, key := range md.Keys() {
		within, depth := "", 0 // the table that the key is looked for in
		for {
			value := tables[within][key[depth]]
			depth++
			name := key[:depth].String()
			if !isTable(fields, name) {
				if err := applyLeaf(c, fields, path, name, md, value); err != nil {
					return err
				}
				break
			}
			if tables[name] == nil {
				if tables[name], err = leaves(md, value); err != nil {
					return fmt.Errorf("%s: want a table [%s]", place(path, md, value), name)
				}
			}
			if within = name; depth == len(key) {
				break
			}
		}
	}
	return nil
}

// leaves are the members of a table. The library would decode a number into a map without an error.
func leaves(md toml.MetaData, table toml.Primitive) (map[string]toml.Primitive, error) {
	var value any
	if err := md.PrimitiveDecode(table, &value); err != nil {
		return nil, err
	}
	if _, ok := value.(map[string]any); !ok {
		return nil, errors.New("no table")
	}
	members := map[string]toml.Primitive{}
	return members, md.PrimitiveDecode(table, &members)
}

// applyLeaf sets the field called name, and notes where in the file it was set.
func applyLeaf(c *Config, fields []field, path, name string, md toml.MetaData, value toml.Primitive) error {
	i := slices.IndexFunc(fields, func(f field) bool { return f.key == name })
	if i < 0 {
		return fmt.Errorf("%s: unknown key %q%s", place(path, md, value), name, didYouMean(name, keyNames(fields)))
	}
	if err := md.PrimitiveDecode(value, &leaf{set: fields[i].setTOML}); err != nil {
		return atLine(path, err)
	}
	c.origin[name] = place(path, md, value)
	return nil
}

// leaf hands one TOML value to set. An error comes back from the library with the value's line.
type leaf struct{ set func(any) error }

// UnmarshalTOML implements toml.Unmarshaler.
func (l *leaf) UnmarshalTOML(value any) error { return l.set(value) }

// place is "config.toml:14", where the key of value stands. The library tells a line only with an error, so this
// makes one.
func place(path string, md toml.MetaData, value toml.Primitive) string {
	err := md.PrimitiveDecode(value, &leaf{set: func(any) error { return errors.New("here") }})
	var pe toml.ParseError
	if !errors.As(err, &pe) {
		return path
	}
	return fmt.Sprintf("%s:%d", path, pe.Position.Line)
}

// atLine turns an error of the library into "config.toml:14: ...".
func atLine(path string, err error) error {
	var pe toml.ParseError
	if !errors.As(err, &pe) {
		return fmt.Errorf("%s: %w", path, err)
	}
	if pe.LastKey != "" && !strings.Contains(pe.Message, pe.LastKey) {
		return fmt.Errorf("%s:%d: %s: %s", path, pe.Position.Line, pe.LastKey, pe.Message)
	}
	return fmt.Errorf("%s:%d: %s", path, pe.Position.Line, pe.Message)
}

// A field is one leaf of Config, to be set from TOML or from text.
type field struct {
	key   string // "issuer.listen"
	help  string
	value reflect.Value // addressable: setting it sets the Config
}

// configFields lists the leaves of c in the order of the struct.
func configFields(c *Config) []field {
	return appendFields(nil, "", reflect.ValueOf(c).Elem())
}

func appendFields(fields []field, prefix string, v reflect.Value) []field {
	for i := range v.NumField() {
		sf := v.Type().Field(i)
		name := sf.Tag.Get("toml")
		switch {
		case !sf.IsExported():
		case sf.Type.Kind() == reflect.Struct:
			fields = appendFields(fields, prefix+name+".", v.Field(i))
		default:
			fields = append(fields, field{key: prefix + name, help: sf.Tag.Get("help"), value: v.Field(i)})
		}
	}
	return fields
}

// isMap says that the field is a table whose keys are the operator's own: it can be set in the file only.
func (f field) isMap() bool { return f.value.Kind() == reflect.Map }

// flag is "--issuer-listen" for issuer.listen.
func (f field) flag() string { return "--" + strings.NewReplacer(".", "-", "_", "-").Replace(f.key) }

// kind names the type in --help.
func (f field) kind() string {
	switch f.value.Interface().(type) {
	case time.Duration:
		return "duration"
	case int:
		return "number"
	case bool:
		return "true or false"
	case []string:
		return "list"
	case claimsTable:
		return "table"
	default:
		return "text"
	}
}

// setText sets the field from a variable or a flag; a list is split at commas.
func (f field) setText(text string) error {
	switch p := f.value.Addr().Interface().(type) {
	case *string:
		*p = text
	case *int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("want a whole number, got %q", text)
		}
		*p = n
	case *bool:
		if text != "true" && text != "false" {
			return fmt.Errorf("want true or false, got %q", text)
		}
		*p = text == "true"
	case *time.Duration:
		return setDuration(p, text)
	case *claimsTable:
		return errors.New("a table stands in the file only")
	case *[]string:
		*p = nil
		for part := range strings.SplitSeq(text, ",") {
			if part = strings.TrimSpace(part); part != "" {
				*p = append(*p, part)
			}
		}
	}
	return nil
}

// setTOML sets the field from a value as the TOML library gives it. A list may be written as one string.
func (f field) setTOML(value any) error {
	switch p := f.value.Addr().Interface().(type) {
	case *string:
		if s, ok := value.(string); ok {
			*p = s
			return nil
		}
		return fmt.Errorf("want text in quotes, got %s", tomlKind(value))
	case *int:
		if n, ok := value.(int64); ok {
			*p = int(n)
			return nil
		}
		return fmt.Errorf("want a whole number, got %s", tomlKind(value))
	case *bool:
		if b, ok := value.(bool); ok {
			*p = b
			return nil
		}
		return fmt.Errorf("want true or false, got %s", tomlKind(value))
	case *time.Duration:
		if s, ok := value.(string); ok {
			return setDuration(p, s)
		}
		return fmt.Errorf("want a duration in quotes such as \"30s\", got %s", tomlKind(value))
	case *claimsTable:
		return setClaims(p, value)
	case *[]string:
		return setList(p, value)
	case *map[string]string:
		return setTexts(p, value)
	case *map[string]map[string]any:
		return setTables(p, value)
	}
	return nil
}

func setDuration(p *time.Duration, text string) error {
	d, err := time.ParseDuration(text)
	if err != nil {
		return fmt.Errorf("want a duration such as \"30s\", \"15m\" or \"168h\", got %q", text)
	}
	*p = d
	return nil
}

func setClaims(p *claimsTable, value any) error {
	table, ok := value.(map[string]any)
	if !ok {
		return fmt.Errorf("want a table of claims, got %s", tomlKind(value))
	}
	*p = nil
	for name, item := range table {
		text, ok := item.(string)
		if !ok {
			return fmt.Errorf("want text in quotes for claim %q, got %s", name, tomlKind(item))
		}
		if *p == nil {
			*p = claimsTable{}
		}
		(*p)[name] = text
	}
	return nil
}

func setList(p *[]string, value any) error {
	if s, ok := value.(string); ok {
		*p = []string{s}
		return nil
	}
	list, ok := value.([]any)
	if !ok {
		return fmt.Errorf("want text or a list of texts, got %s", tomlKind(value))
	}
	*p = nil
	for _, item := range list {
		s, ok := item.(string)
		if !ok {
			return fmt.Errorf("want a list of texts, got %s in it", tomlKind(item))
		}
		*p = append(*p, s)
	}
	return nil
}

// setTexts sets a table whose keys are the operator's own, each with a text.
func setTexts(p *map[string]string, value any) error {
	table, ok := value.(map[string]any)
	if !ok {
		return fmt.Errorf("want a table, got %s", tomlKind(value))
	}
	*p = nil
	for name, v := range table {
		text, ok := v.(string)
		if !ok {
			return fmt.Errorf("%s: want text in quotes, got %s", name, tomlKind(v))
		}
		if *p == nil {
			*p = make(map[string]string)
		}
		(*p)[name] = text
	}
	return nil
}

// setTables sets a table of tables, whose content is not ours to judge.
func setTables(p *map[string]map[string]any, value any) error {
	tables, ok := value.(map[string]any)
	if !ok {
		return fmt.Errorf("want a table, got %s", tomlKind(value))
	}
	*p = nil
	for name, v := range tables {
		table, ok := v.(map[string]any)
		if !ok {
			return fmt.Errorf("%s: want a table, got %s", name, tomlKind(v))
		}
		if *p == nil {
			*p = make(map[string]map[string]any)
		}
		(*p)[name] = table
	}
	return nil
}

// tomlKind says what a value is, in words and without the value: it may be a secret in the wrong place.
func tomlKind(value any) string {
	switch value.(type) {
	case string:
		return "text"
	case int64, float64:
		return "a number"
	case bool:
		return "true or false"
	case []any, []map[string]any:
		return "a list"
	case map[string]any:
		return "a table"
	default:
		return "a date or time"
	}
}

func isTable(fields []field, name string) bool {
	return slices.ContainsFunc(fields, func(f field) bool { return strings.HasPrefix(f.key, name+".") })
}

// keyNames lists all that a key in the file can be called, tables included.
func keyNames(fields []field) []string {
	var names []string
	for _, f := range fields {
		for at, r := range f.key {
			if r == '.' && !slices.Contains(names, f.key[:at]) {
				names = append(names, f.key[:at])
			}
		}
		names = append(names, f.key)
	}
	return names
}
