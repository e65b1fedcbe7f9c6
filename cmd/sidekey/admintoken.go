package main

import (
	"net/http"

	"github.com/spf13/cobra"
)

func (a *app) adminTokenCommand() *cobra.Command {
	return group("admin-token", "The token of the admin API", a.adminTokenRotateCommand())
}

func (a *app) adminTokenRotateCommand() *cobra.Command {
	return a.addFormat(&cobra.Command{
		Use:   "rotate",
		Short: "Make another admin token, and refuse the one before",
		Long: "Make another admin token, and refuse the one before: when somebody may know it. The new one is not shown: it is in\n" +
			"admin.token of each issuer's data_dir, for who may read there. Other issuers take it over within two seconds.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.change(cmd, http.MethodPost, "/admin/v1/admin-token/rotate", nil, "rotated the admin token; the new one is in admin.token of each issuer's data_dir")
		},
	})
}
