package sqldb

import (
	"context"
	"crypto/tls"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
)

// ErrTooMany means that a query found more rows than it may.
var ErrTooMany = errors.New("the query finds more rows than it may")

// QueryError means that the query is wrong, and will be so the next time. Problem holds no value that was asked for.
type QueryError struct{ Problem string }

func (e *QueryError) Error() string { return "the query is wrong: " + e.Problem }

// explain makes an error that may be logged of a driver's. A server repeats in some errors what it was asked for, and people type
// passwords into the field of the user name, so its words are kept only where it was asked for nothing.
func (d *DB) explain(err error, askedNothing bool) error {
	var pg *pgconn.PgError
	var my *mysql.MySQLError
	var lite *sqlite.Error
	code, words := "", ""
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the database did not answer within %s: %w", d.timeout, context.DeadlineExceeded)
	case errors.As(err, &pg):
		if pg.Code == "22P02" || pg.Code == "22003" { // invalid text for the column's type, number out of range
			return nil
		}
		code, words = "SQLSTATE "+pg.Code, pg.Message
		if !strings.HasPrefix(pg.Code, "42") && !strings.HasPrefix(pg.Code, "08P01") { // syntax error or access rule violation
			return fmt.Errorf("the database refused: %s", code)
		}
	case errors.As(err, &my):
		code, words = fmt.Sprintf("MySQL error %d", my.Number), my.Message
		if !mysqlQuery[my.Number] {
			return fmt.Errorf("the database refused: %s", code)
		}
	case errors.As(err, &lite):
		code, words = fmt.Sprintf("SQLite error %d", lite.Code()), lite.Error()
		if lite.Code() != 1 { // SQLITE_ERROR: no such table, no such column, syntax error
			return fmt.Errorf("the database refused: %s", code)
		}
	default:
		return unreached(err)
	}
	if askedNothing {
		return &QueryError{words + " (" + code + ")"}
	}
	return &QueryError{code}
}

// mysqlQuery are the errors of MySQL that say that a query is wrong, not that the server is away.
var mysqlQuery = map[uint16]bool{
	1044: true, 1046: true, 1049: true, // no right on, none chosen, no such database
	1052: true, 1054: true, 1064: true, // ambiguous column, no such column, syntax
	1142: true, 1143: true, 1146: true, 1210: true, // no right on table or column, no such table, wrong number of parameters
}

// unreached says that the database is away. Of the cause it keeps what package net says, and no DSN.
func unreached(err error) error {
	var op *net.OpError
	var own *QueryError
	var cert *tls.CertificateVerificationError
	switch {
	case errors.Is(err, ErrTooMany), errors.As(err, &own), errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &op):
		return fmt.Errorf("the database cannot be reached: %w", op)
	case errors.As(err, &cert):
		return fmt.Errorf("the database cannot be reached: %w", cert)
	case errors.Is(err, mysql.ErrInvalidConn), errors.Is(err, driver.ErrBadConn):
		return errors.New("the database ended the connection")
	}
	return fmt.Errorf("the database cannot be asked: %T", err)
}

// local tells whether a host, or the folder of a socket, is this one.
func local(host string) bool {
	if strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") || host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

func localAddress(address string) bool {
	host, _, err := net.SplitHostPort(address)
	return err == nil && local(host)
}
