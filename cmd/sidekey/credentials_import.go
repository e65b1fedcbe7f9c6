package main

import (
	"bufio"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sidekey/sidekey/issuer/sqldb"
)

// Bounds of an import.
const (
	importCall    = 200       // tokens of one call
	importBytes   = 48 << 10  // of one call's body, about
	importRows    = 5_000_000 // of one table
	importTimeout = 5 * time.Minute
)

// importedToken is a row of authtoken_token as the admin API takes it.
type importedToken struct {
	Key     string `json:"key"`
	UserID  string `json:"user_id"`
	Created int64  `json:"created,omitempty"`

	row int    // where it comes from: a line of the CSV, or a row of the table, from 1
	bad string // why it is not even sent
}

func (a *app) credentialsImportCommand() *cobra.Command {
	var driver, dsn, query string
	cmd := &cobra.Command{
		Use:   "import (FILE | --database DRIVER --dsn DSN)",
		Short: "Take in a table authtoken_token of Django REST Framework, so that clients keep their tokens",
		Long: "Take in the tokens of Django REST Framework, from a CSV file with the header key,user_id,created (-: standard input),\n" +
			"or from the database itself. Each goes to the user whose id is user_id; a token whose user is not here is listed and\n" +
			"left out, and the exit status is 1. It can be run again: what is here stays as it is, and what was revoked here since\n" +
			"stays revoked.\n\n" +
			"The DSN of a server is a secret: give it as @FILE or - (standard input).",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			tokens, err := a.readTokens(cmd.Context(), args, driver, dsn, query)
			if err != nil {
				return err
			}
			return a.importTokens(cmd, tokens)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&driver, "database", "", "postgres, mysql or sqlite")
	flags.StringVar(&dsn, "dsn", "", "the database: @FILE or - with postgres://… or user:password@tcp(host)/db; a SQLite file's path as it is")
	flags.StringVar(&query, "query", "", "what to ask it, with the columns key, user_id and created (default the table authtoken_token)")
	cmd.MarkFlagsRequiredTogether("database", "dsn")
	return a.addFormat(cmd)
}

func (a *app) readTokens(ctx context.Context, args []string, driver, dsn, query string) ([]importedToken, error) {
	switch {
	case (len(args) == 1) == (driver != ""):
		return nil, usagef("name one source: a CSV file, or --database and --dsn")
	case driver != "":
		return a.readTokenTable(ctx, driver, dsn, query)
	case args[0] == "-":
		return readTokenCSV(a.stdin)
	}
	f, err := os.Open(args[0])
	if err != nil {
		return nil, fmt.Errorf("reading the tokens: %w", err)
	}
	defer f.Close()
	return readTokenCSV(f)
}

// readTokenCSV reads what psql's \copy … csv header, sqlite3 -csv -header and the like write.
func readTokenCSV(from io.Reader) ([]importedToken, error) {
	buffered := bufio.NewReader(from)
	if mark, err := buffered.Peek(3); err == nil && string(mark) == "\ufeff" {
		_, _ = buffered.Discard(3)
	}
	r := csv.NewReader(buffered)
	header, err := r.Read()
	if err != nil {
		return nil, errors.New("reading the tokens: the file has no header; want key,user_id,created")
	}
	column := map[string]int{}
	for at, name := range header {
		column[strings.ToLower(strings.TrimSpace(name))] = at
	}
	for _, name := range []string{"key", "user_id"} {
		if _, ok := column[name]; !ok {
			return nil, fmt.Errorf("reading the tokens: the header has no column %q; want key,user_id,created", name)
		}
	}
	var all []importedToken
	for {
		fields, err := r.Read()
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			var parse *csv.ParseError
			if errors.As(err, &parse) { // its text would not show the line's content either
				return nil, fmt.Errorf("reading the tokens: line %d is no CSV with %d columns: %w", parse.Line, len(header), parse.Err)
			}
			return nil, fmt.Errorf("reading the tokens: %w", err)
		}
		line, _ := r.FieldPos(0)
		t := importedToken{Key: strings.TrimSpace(fields[column["key"]]), UserID: strings.TrimSpace(fields[column["user_id"]]), row: line}
		if at, ok := column["created"]; ok {
			t.created(fields[at])
		}
		all = append(all, t)
	}
}

// createdLayouts are how databases and Django write a time. One without a zone is UTC, as Django keeps it.
var createdLayouts = []string{
	time.RFC3339Nano, "2006-01-02 15:04:05.999999999Z07:00", "2006-01-02 15:04:05.999999999-07", "2006-01-02 15:04:05.999999999-07:00",
	"2006-01-02 15:04:05.999999999 -0700 MST", "2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05.999999999",
}

// created takes a time in whatever form it comes.
func (t *importedToken) created(value any) {
	switch v := value.(type) {
	case nil:
	case time.Time:
		t.Created = v.Unix()
	case int64:
		t.Created = v
	case []byte:
		t.created(string(v))
	case string:
		if v = strings.TrimSpace(v); v == "" {
			return
		}
		for _, layout := range createdLayouts {
			if at, err := time.Parse(layout, v); err == nil {
				t.Created = at.Unix()
				return
			}
		}
		t.bad = "its time of creation cannot be read"
	default:
		t.bad = "its time of creation cannot be read"
	}
}

// readTokenTable reads a database.
func (a *app) readTokenTable(ctx context.Context, driver, dsn, query string) ([]importedToken, error) {
	if driver != sqldb.SQLite && dsn != "-" && !strings.HasPrefix(dsn, "@") {
		return nil, usagef("--dsn: it is a secret, which other processes would see: give it as @FILE or - (standard input)")
	}
	secret, err := a.secretArg("DSN", dsn)
	if err != nil {
		return nil, err
	}
	cfg, err := a.config(defaultConfig())
	if err != nil {
		return nil, err
	}
	db, err := sqldb.Open(sqldb.Config{Driver: driver, DSN: secret, Timeout: importTimeout, Insecure: cfg.Insecure})
	if err != nil {
		return nil, err
	}
	defer db.Close()
	if query == "" {
		query = `SELECT "key", user_id, created FROM authtoken_token ORDER BY created`
		if driver == sqldb.MySQL {
			query = strings.ReplaceAll(query, `"`, "`")
		}
	}
	rows, err := db.Rows(ctx, importRows, query)
	if err != nil {
		return nil, fmt.Errorf("reading the tokens: %w", err)
	}
	all := make([]importedToken, 0, len(rows))
	for at, row := range rows {
		t := importedToken{row: at + 1}
		key, hasKey := asText(row["key"])
		user, hasUser := asText(row["user_id"])
		if t.Key, t.UserID = key, user; !hasKey || !hasUser {
			return nil, errors.New(`reading the tokens: the query must give text or numbers in the columns "key" and "user_id"`)
		}
		t.created(row["created"])
		all = append(all, t)
	}
	return all, nil
}

// asText is a value of a column as sidekey writes ids.
func asText(value any) (string, bool) {
	switch v := value.(type) {
	case string:
		return v, true
	case []byte:
		return string(v), true
	case int64:
		return strconv.FormatInt(v, 10), true
	}
	return "", false
}

// importReport is what became of an import.
type importReport struct {
	Imported int             `json:"imported"`
	Present  int             `json:"present"` // here already
	Revoked  int             `json:"revoked"` // here, and revoked since
	Refused  []refusedImport `json:"refused"`
}

// refusedImport is a token that was left out. It is named by where it stands: its text is a secret.
type refusedImport struct {
	Row    int    `json:"row"`
	UserID string `json:"user_id"`
	Detail string `json:"detail"`
}

func (a *app) importTokens(cmd *cobra.Command, tokens []importedToken) error {
	c, err := a.adminClient()
	if err != nil {
		return err
	}
	report := importReport{Refused: []refusedImport{}}
	var some []importedToken
	size := 0
	send := func() error {
		if len(some) == 0 {
			return nil
		}
		err := report.send(cmd.Context(), c, some)
		some, size = some[:0], 0
		return err
	}
	for _, t := range tokens {
		if t.bad != "" {
			report.Refused = append(report.Refused, refusedImport{t.row, t.UserID, t.bad})
			continue
		}
		if n := len(t.Key) + len(t.UserID) + 64; len(some) == importCall || size+n > importBytes {
			if err = send(); err != nil {
				break
			}
		}
		some, size = append(some, t), size+len(t.Key)+len(t.UserID)+64
	}
	if err == nil {
		err = send()
	}
	if perr := a.answerImport(&report); perr != nil {
		return perr
	}
	switch {
	case err != nil:
		return fmt.Errorf("the import stopped after %d of %d tokens; run it again, which goes on: %w", report.total(), len(tokens), err)
	case len(report.Refused) > 0:
		return fmt.Errorf("%d of %d tokens were left out; mend what stands beside each and run it again", len(report.Refused), len(tokens))
	}
	return nil
}

func (r *importReport) total() int { return r.Imported + r.Present + r.Revoked + len(r.Refused) }

// send imports some tokens by one call.
func (r *importReport) send(ctx context.Context, c *client, some []importedToken) error {
	got, err := c.call(ctx, http.MethodPost, "/admin/v1/credentials/import", map[string]any{"tokens": some})
	if err != nil {
		return err
	}
	var answer struct {
		Results []struct {
			Result string `json:"result"`
			Detail string `json:"detail"`
		} `json:"results"`
	}
	if err := got.decode(&answer); err != nil {
		return err
	}
	if len(answer.Results) != len(some) {
		return fmt.Errorf("reading the answer: %d results for %d tokens", len(answer.Results), len(some))
	}
	for at, one := range answer.Results {
		switch one.Result {
		case "imported":
			r.Imported++
		case "present":
			r.Present++
		case "revoked":
			r.Revoked++
		default:
			r.Refused = append(r.Refused, refusedImport{some[at].row, some[at].UserID, one.Detail})
		}
	}
	return nil
}

func (a *app) answerImport(r *importReport) error {
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return a.answer(body, func(w *tabwriter.Writer) {
		row(w, fmt.Sprintf("imported %d, here already %d, revoked here since %d, left out %d", r.Imported, r.Present, r.Revoked, len(r.Refused)))
		for _, one := range r.Refused {
			row(w, fmt.Sprintf("row %d", one.Row), "user_id "+one.UserID, one.Detail)
		}
	})
}
