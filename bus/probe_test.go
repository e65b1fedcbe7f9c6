package bus_test

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/bustest"
)

func TestProbe(t *testing.T) {
	clear, secure, other := bustest.Start(t), bustest.StartTLS(t), bustest.StartTLS(t)
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	web, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer web.Close()
	go func() {
		for conn, err := web.Accept(); err == nil; conn, err = web.Accept() {
			conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			conn.Close()
		}
	}()
	at := func(b *bustest.Bus) string {
		return strings.NewReplacer("0.0.0.0", "127.0.0.1", "[::]", "127.0.0.1").Replace(b.Server.URL())
	}
	for name, c := range map[string]struct {
		url  string
		ca   []byte
		want string // of the error; "": none
	}{
		"in clear":             {at(clear), nil, ""},
		"by TLS":               {at(secure), secure.CA(), ""},
		"of another CA":        {at(secure), other.CA(), "by TLS: tls: failed to verify certificate"},
		"of an unknown CA":     {at(secure), nil, "by TLS: tls: failed to verify certificate"},
		"TLS wanted, has none": {strings.Replace(at(clear), "nats://", "tls://", 1), nil, "by TLS"},
		"nobody there":         {"nats://" + gone.Addr().String(), nil, "connection refused"},
		"a web server":         {"nats://" + web.Addr().String(), nil, "what listens there is no nats-server"},
		"silence":              {"nats://" + mute.Addr().String(), nil, "what listens there is no nats-server"},
		"no address":           {"nats://user:s3cret@", nil, "it is no address"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		p, err := bus.Probe(ctx, c.url, c.ca)
		cancel()
		switch {
		case c.want == "" && (err != nil || bus.Outdated(p.Version) || p.TLS != (c.ca != nil) || p.TLS == p.NotAfter.IsZero()):
			t.Errorf("%s: got %+v and %v", name, p, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "s3cret")):
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	if !bus.Outdated("2.11.9") || bus.Outdated(bus.OldestServer) || !bus.Outdated("") {
		t.Errorf("Outdated: 2.11.9 %t, %s %t, none %t", bus.Outdated("2.11.9"), bus.OldestServer, bus.Outdated(bus.OldestServer), bus.Outdated(""))
	}
}
