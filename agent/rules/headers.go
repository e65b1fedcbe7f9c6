package rules

import (
	"errors"
	"reflect"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
)

// headers is a request's header fields as a map of CEL, looked up when asked: there is no list of them to range over.
type headers struct{ get func(string) string }

// fields implements traits.Mapper over headers.
type fields struct{ headers }

func (h headers) mapper() traits.Mapper { return fields{h} }

var errNoList = errors.New("request.headers can be asked for one field, and not be listed")

// ConvertToNative implements ref.Val.
func (f fields) ConvertToNative(reflect.Type) (any, error) { return nil, errNoList }

// ConvertToType implements ref.Val.
func (f fields) ConvertToType(ref.Type) ref.Val { return types.WrapErr(errNoList) }

// Equal implements ref.Val.
func (f fields) Equal(ref.Val) ref.Val { return types.WrapErr(errNoList) }

// Type implements ref.Val.
func (f fields) Type() ref.Type { return types.MapType }

// Value implements ref.Val.
func (f fields) Value() any { return f }

// Size implements traits.Sizer.
func (f fields) Size() ref.Val { return types.WrapErr(errNoList) }

// Iterator implements traits.Iterable.
func (f fields) Iterator() traits.Iterator { return new(noIterator) }

// Contains implements traits.Container: `"x-tenant" in request.headers`.
func (f fields) Contains(key ref.Val) ref.Val {
	_, ok := f.Find(key)
	return types.Bool(ok)
}

// Get implements traits.Indexer: request.headers["x-tenant"].
func (f fields) Get(key ref.Val) ref.Val {
	v, ok := f.Find(key)
	if !ok {
		return types.NewErr("no such header field")
	}
	return v
}

// Find implements traits.Mapper.
func (f fields) Find(key ref.Val) (ref.Val, bool) {
	name, ok := key.(types.String)
	if !ok || f.get == nil {
		return nil, false
	}
	v := f.get(string(name))
	if v == "" {
		return nil, false
	}
	return types.String(v), true
}

// noIterator has one member, which is an error: were it empty, request.headers.all(…) would be true of whatever was sent.
type noIterator struct{ over bool }

func (*noIterator) ConvertToNative(reflect.Type) (any, error) { return nil, errNoList }
func (*noIterator) ConvertToType(ref.Type) ref.Val            { return types.WrapErr(errNoList) }
func (*noIterator) Equal(ref.Val) ref.Val                     { return types.WrapErr(errNoList) }
func (*noIterator) Type() ref.Type                            { return types.IteratorType }
func (*noIterator) Value() any                                { return nil }
func (it *noIterator) HasNext() ref.Val                       { return types.Bool(!it.over) }
func (it *noIterator) Next() ref.Val {
	it.over = true
	return types.WrapErr(errNoList)
}
