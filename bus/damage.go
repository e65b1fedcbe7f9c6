package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// damagedSuffix is what the file's name, of what the bus has lost, has behind that of the revisions. It holds a line a bucket, for who reads it.
const damagedSuffix = ".damaged"

// errDamaged is what a start says as long as that file is there. A server tells of what its disk has lost only until it is started again.
func (g *Guard) errDamaged() error {
	text, err := os.ReadFile(g.path + damagedSuffix)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading what the bus has lost: %w", err)
	}
	return fmt.Errorf("%s; restore a backup, or, to go on without what is lost, remove %s", text, g.path+damagedSuffix)
}

// noteDamaged writes down what a bucket has lost, and gives the refusal.
func (g *Guard) noteDamaged(bucket string, lost *lostRecords) error {
	text := fmt.Sprintf("the bus has lost records of bucket %s to its disk (%d bytes, %d records of which it knows)", bucket, lost.Bytes, len(lost.Records))
	if err := WriteFile(g.path+damagedSuffix, []byte(text)); err != nil {
		return fmt.Errorf("%s; writing that down: %w", text, err)
	}
	return g.errDamaged()
}

// lostRecords is what a server has found damaged on its disk when it read a stream, and passed over.
type lostRecords struct {
	Records []uint64 `json:"msgs"` // their sequences, where it knows them
	Bytes   uint64   `json:"bytes"`
}

// maxDeleted is how many deleted records a bucket may have for the server to be asked what it has lost: it names all of these too.
const maxDeleted = 100_000

// lost asks the server what it has lost of the bucket; nil: nothing of which it knows. Of a bucket with replicas another server has it still.
func (b *Bucket) lost(ctx context.Context) (*lostRecords, error) {
	if b.conn.replicated() {
		return nil, nil
	}
	info, err := b.stream.Info(ctx)
	if err == nil && info.State.NumDeleted > maxDeleted {
		return nil, nil
	}
	var m *nats.Msg
	if err == nil {
		m, err = b.conn.nc.RequestMsgWithContext(ctx, &nats.Msg{Subject: "$JS.API.STREAM.INFO." + info.Config.Name, Data: []byte(`{"deleted_details":true}`)})
	}
	var ans struct {
		Error *jetstream.APIError `json:"error"`
		State struct {
			Lost *lostRecords `json:"lost"`
		} `json:"state"`
	}
	if err == nil {
		err = json.Unmarshal(m.Data, &ans)
	}
	if err == nil && ans.Error != nil {
		err = ans.Error
	}
	if err != nil {
		return nil, fmt.Errorf("asking for the state of bucket %s: %w", b.name, err)
	}
	return ans.State.Lost, nil
}
