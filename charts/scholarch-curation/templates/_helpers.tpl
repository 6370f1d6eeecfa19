{{- define "scholarch-curation.labels" -}}
app.kubernetes.io/name: scholarch
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* What MinIO and MLflow let in. */}}
{{- define "scholarch-curation.selector" -}}
scholarch.dev/run: {{ .Release.Name }}
{{- end }}

{{/* A pod's template, of (list ROOT NAME-OF-CONTAINER WHAT-ELSE-IT-HAS). */}}
{{- define "scholarch-curation.pod" }}
{{- $root := index . 0 }}{{- $own := index . 2 }}
metadata:
  labels:
    app.kubernetes.io/name: scholarch
    app.kubernetes.io/instance: {{ $root.Release.Name }}
    {{- include "scholarch-curation.selector" $root | nindent 4 }}
spec:
  automountServiceAccountToken: false
  enableServiceLinks: false
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    fsGroup: 10001
    seccompProfile: {type: RuntimeDefault}
  {{- with $root.Values.secrets.pull }}
  imagePullSecrets: [{name: {{ . }}}]
  {{- end }}
  containers:
    - name: {{ index . 1 }}
      image: {{ $root.Values.image }}
      imagePullPolicy: IfNotPresent
      securityContext:
        allowPrivilegeEscalation: false
        capabilities: {drop: [ALL]}
        readOnlyRootFilesystem: true
      {{- toYaml $own | nindent 6 }}
      env:
        - {name: HOME, value: /tmp}
        - {name: SCHOLARCH_SCRATCH, value: /tmp/scholarch}
        - {name: RAY_USAGE_STATS_ENABLED, value: "0"}
        {{- range $name, $value := $root.Values.env }}
        - {name: {{ $name }}, value: {{ $value | quote }}}
        {{- end }}
      envFrom:
        {{- range compact (list $root.Values.secrets.storage $root.Values.secrets.tracking) }}
        - secretRef: {name: {{ . }}}
        {{- else }} []
        {{- end }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        - {name: shm, mountPath: /dev/shm}
        - {name: recipe, mountPath: /etc/scholarch, readOnly: true}
  volumes:
    - name: tmp
      emptyDir: {sizeLimit: {{ $root.Values.scratch }}}
    - name: shm
      emptyDir: {medium: Memory, sizeLimit: {{ $root.Values.sharedMemory }}}
    - name: recipe
      configMap: {name: {{ $root.Release.Name }}-recipe}
{{- end }}
