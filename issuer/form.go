package issuer

import (
	"bytes"
	"errors"
	"io"
	"mime/multipart"
	"net/url"
)

// readMultipart reads a multipart form's values; files are skipped. The body is bounded already.
func readMultipart(data []byte, boundary string) (url.Values, error) {
	if boundary == "" {
		//lint:ignore ST1005 the words are Django's
		return nil, errors.New("Invalid boundary in multipart: None")
	}
	values := make(url.Values)
	parts := multipart.NewReader(bytes.NewReader(data), boundary)
	for {
		p, err := parts.NextPart()
		if errors.Is(err, io.EOF) {
			return values, nil
		}
		if err != nil {
			return nil, errors.New("the form ends early")
		}
		if p.FileName() != "" {
			continue
		}
		value, err := io.ReadAll(p)
		if err != nil {
			return nil, errors.New("the form ends early")
		}
		values.Add(p.FormName(), string(value))
	}
}
