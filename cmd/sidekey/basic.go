package main

import (
	"context"
	"crypto/ed25519"

	"github.com/sidekey/sidekey/bus"
)

// answerPasswords has this issuer answer the agents' questions about passwords, from when it can until ctx
// ends: before, it would take questions from issuers that know.
func (p *issuerProcess) answerPasswords(ctx context.Context) error {
	if awaitReady(ctx, p.issuer.Ready) != nil {
		return nil
	}
	stop, err := p.passwords().Listen()
	if err != nil {
		return err
	}
	<-ctx.Done()
	stop()
	return nil
}

func (p *issuerProcess) passwords() *bus.BasicAnswerer {
	return &bus.BasicAnswerer{
		Conn: p.conn, Authority: p.authority, Known: p.books.Key, Open: p.issuer.OpenSealed, Time: p.replica.Time, Check: p.issuer.AnswerBasic,
		Key: func(ctx context.Context, agent string) (ed25519.PublicKey, error) {
			return p.fleet.SigningKey(ctx, agent)
		},
		Logger: p.log.Named("basic"),
	}
}
