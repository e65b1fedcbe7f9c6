package replica

// CloseJournalFile closes the journal's file behind the Store's back, so that every write fails.
func (s *Store) CloseJournalFile() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.journal.Close()
}
