package bus

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// How a store that takes no more is waited for.
const (
	reopenEvery = time.Second            // looks at whether it does, and whether the disk does again
	reopenWarn  = time.Minute            // between two words about it
	roomAtLeast = 4 << 20                // bytes that the disk must take again
	writeError  = "critical write error" // what nats-server says of what it writes to no more
	roomFile    = "sidekey.probe"        // in the store's folder, for a moment
)

// keepOpen has the server take writes again after its disk was full, or refused a write. nats-server switches JetStream off then, or
// closes the stream to writes, and neither opens again by itself: it is left off until the disk takes bytes again, and is then
// started anew in place, from what is on the disk, which is all that was acknowledged. It returns when s is closed.
func (s *Server) keepOpen() {
	defer close(s.kept)
	look := time.NewTicker(reopenEvery)
	defer look.Stop()
	var warned time.Time
	for {
		select {
		case <-s.closing:
			return
		case <-look.C:
		}
		if s.srv.JetStreamEnabled() && !s.logger.broken.Load() {
			continue
		}
		err := s.reopen()
		switch {
		case err == nil:
			warned = time.Time{}
			s.logger.log.Warn("the bus takes writes again")
		case time.Since(warned) > reopenWarn:
			warned = time.Now()
			s.logger.log.Error("THE BUS TAKES NO WRITES: its disk is full, or refuses them; make room, and it goes on by itself", "dir", s.opts.StoreDir, "error", err)
		}
	}
}

// reopen starts JetStream anew if the disk takes writes. It does what a reload of nats-server's configuration does.
func (s *Server) reopen() error {
	if err := tryDisk(s.opts.StoreDir); err != nil {
		return err
	}
	s.routes.Lock()
	defer s.routes.Unlock()
	if err := s.srv.ShutdownJetStream(); err != nil {
		return fmt.Errorf("closing the streams: %w", err)
	}
	s.logger.broken.Store(false)
	opts := s.opts.Clone()
	opts.TrustedKeys = nil // made of TrustedOperators
	if err := s.srv.ReloadOptions(opts); err != nil {
		return fmt.Errorf("opening the streams again: %w", err)
	}
	s.opts = opts
	if !s.srv.JetStreamEnabled() {
		return errors.New("opening the streams again: nats-server does not; see its log lines above")
	}
	return nil
}

// tryDisk writes as much as must fit, syncs it and takes it away again.
func tryDisk(dir string) error {
	path := filepath.Join(dir, roomFile)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, roomAtLeast))
	return errors.Join(err, f.Sync(), f.Close(), os.Remove(path))
}

// tellsOfWrites tells whether a line of nats-server's says that it writes to a stream no more.
func tellsOfWrites(format string) bool { return strings.Contains(strings.ToLower(format), writeError) }
